"""Plant one bug after another in a copy of the package, and run the test that sees it.

    python tests/stress/mutation.py             # all
    python tests/stress/mutation.py clamp ema   # those whose name holds one of these
    python tests/stress/mutation.py --check     # only that every bug can be planted

A bug survives when its named test passes. The exit status is 0 when none survives.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Bug(NamedTuple):
    """A mistake: in a file, `old` is replaced by `new` where it is found first."""

    name: str
    file: str
    old: str
    new: str
    test: str


BUGS = [
    Bug(**each)
    for each in tomllib.loads(Path(__file__).with_name("bugs.toml").read_text())["bug"]
]


def planted(folder: Path, bug: Bug) -> None:
    """Write the bug into the copy.

    Raises:
        ValueError: The code does not hold the text that the bug replaces.
    """
    path = folder / bug.file
    text = path.read_text()
    if bug.old not in text:
        raise ValueError(f"{bug.name}: {bug.file} does not hold {bug.old!r}")
    path.write_text(text.replace(bug.old, bug.new, 1))


def copied(folder: Path) -> None:
    """Copy what the tests need."""
    for name in ("fastadv", "kernels", "tests", "examples", "recipes", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "stress")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder)


def killed(folder: Path, bug: Bug) -> bool:
    """Plant a bug, run its test, and take the bug out again."""
    path = folder / bug.file
    before = path.read_text()
    planted(folder, bug)
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        environment = os.environ | {"PYTHONPATH": str(folder)}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [*command, *shlex.split(bug.test)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        path.write_text(before)
    if done.returncode not in (0, 1):  # no test was found, or it cannot be collected
        raise RuntimeError(f"{bug.name}: {done.stdout[-2000:]}{done.stderr[-500:]}")
    return done.returncode == 1


def main(wanted: list[str]) -> int:
    """Return 0 if no bug survives."""
    check, wanted = "--check" in wanted, [name for name in wanted if name[:1] != "-"]
    bugs = [
        bug for bug in BUGS if not wanted or any(part in bug.name for part in wanted)
    ]
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copied(Path(folder))
        for bug in bugs:
            began = time.monotonic()
            if check:
                planted(Path(folder), bug)
                (Path(folder) / bug.file).write_text((ROOT / bug.file).read_text())
                continue
            dead = killed(Path(folder), bug)
            seconds = time.monotonic() - began
            word = "killed" if dead else "SURVIVED"
            print(f"{word:8s} {bug.name} ({seconds:.0f} s)", flush=True)
            survivors += [] if dead else [bug.name]
    done = "planted" if check else "killed"
    print(f"{len(bugs) - len(survivors)} of {len(bugs)} bugs {done}")
    return 1 if survivors else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
