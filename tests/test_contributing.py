"""CONTRIBUTING.md names files and tests that exist, and at most three files to touch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PAGE = (ROOT / "CONTRIBUTING.md").read_text()
ENTRIES = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", _PAGE, re.M | re.S))


def _listed(entry: str, what: str) -> str:
    [line] = re.findall(rf"^\* {what}: (.*)$", entry, re.M)
    return line


def test_the_page_says_how_to_add_everything_that_has_a_name() -> None:
    assert {name.split(" ", 1)[1] for name in ENTRIES} == {
        "operator",
        "attack",
        "objective",
        "training method",
        "data set",
        "dialect of checkpoints",
        "transfer protocol",
        "kind of result",
    }


@pytest.mark.parametrize("name", ENTRIES)
def test_an_addition_touches_at_most_three_files(name: str) -> None:
    touched = _listed(ENTRIES[name], "Touch").split(", ")
    assert 1 <= len(touched) <= 3
    for words in touched:
        [path] = re.findall(r"`(.*?)`", words)
        assert (ROOT / path).is_dir() == words.startswith("a new file in ")
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ENTRIES)
def test_the_tests_of_an_addition_exist(name: str) -> None:
    tests = re.findall(r"`(.*?)`", _listed(ENTRIES[name], "Checked by"))
    assert tests
    assert [path for path in tests if not (ROOT / path).is_file()] == []
