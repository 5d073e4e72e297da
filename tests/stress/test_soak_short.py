"""Short versions of soak.py, and a look at the bugs that mutation.py plants."""

from __future__ import annotations

import mutation
import pytest
import soak


@pytest.mark.parametrize(("name", "count"), [("training", 60), ("evaluation", 40)])
def test_nothing_grows(name: str, count: int) -> None:
    """So short a run has noise: 40 kB for each call, 40 MB per 1,000, is what leaked once."""
    soak.soak(name, count, bound=25)


def test_every_bug_can_be_planted_and_names_its_test() -> None:
    """The text that a bug replaces is in the code, and its test exists."""
    assert len(mutation.BUGS) >= 40
    assert len({bug.name for bug in mutation.BUGS}) == len(mutation.BUGS)
    for bug in mutation.BUGS:
        assert bug.old in (mutation.ROOT / bug.file).read_text(), bug.name
        assert bug.old != bug.new
        tests = [word for word in bug.test.split() if word.startswith("tests/")]
        assert tests
        for test in tests:
            path, _, name = test.partition("::")
            text = (mutation.ROOT / path).read_text() if path[-3:] == ".py" else name
            assert f"def {name}" in text if name else (mutation.ROOT / path).exists()
