"""The site that `make docs` builds: no warning, whole references, commands that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastadv.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
FLAGS = ROOT / "tests" / "cli" / "flags.txt"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: every warning is an error."""
    pytest.importorskip("furo", reason="the extra docs is not installed")
    out = tmp_path_factory.mktemp("site")
    words = ["-W", "--keep-going", "-q", "-b", "html", "docs", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()


def test_references_are_whole(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text()
    for name in COMMANDS:
        assert f"usage: fastadv-{name}" in commands
    interface = (site / "reference" / "api.html").read_text()
    for name in ("attacks.PGD.perturb", "evaluation.evaluate", "training.TrainConfig"):
        assert f'id="fastadv.{name}"' in interface


# What every command takes besides its own flags.
GENERAL = {"--help", "--help-all", "--config", "--print-config", "--version"}


def known_flags() -> dict[str, set[str]]:
    """Return the flags of each command, also of `fastadv-data list` and the like."""
    found: dict[str, set[str]] = {}
    command = ""
    for line in FLAGS.read_text().splitlines():
        if line.startswith("fastadv"):
            command = line.strip()
            found[command] = set(GENERAL)
        elif line.strip():
            found[command].update(re.findall(r"--[a-z0-9-]+", line))
    return found


def test_commands_of_the_pages_have_their_flags() -> None:
    """Every line of a page that begins with a command of fastadv is one that exists."""
    known, seen = known_flags(), 0
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        if page.parent.name == "reference":
            continue
        for line in page.read_text().replace("\\\n", " ").splitlines():
            words = line.split("#")[0].split()
            if words[:1] == ["fastadv"] and words[1:2]:
                words[:2] = [f"fastadv-{words[1]}"]
            if not words or not re.fullmatch(r"fastadv-[a-z]+", words[0]):
                continue
            command = " ".join(words[:2])
            flags = known.get(command, known.get(words[0]))
            if flags is None:  # a sentence, or several commands at once
                continue
            seen += 1
            for word in words[1:]:
                flag = word.split("=")[0]
                if re.fullmatch(r"--[a-z0-9-]+", flag):
                    assert flag in flags, f"{page.name}: {line}"
    assert seen > 50
