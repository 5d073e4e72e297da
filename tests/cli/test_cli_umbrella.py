"""fastadv COMMAND: every installed command under one name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from fastadv import __version__
from fastadv.cli.main import COMMANDS, main

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_installed_command_is_there() -> None:
    scripts = tomllib.loads(PROJECT.read_text())["project"]["scripts"]
    assert scripts.pop("fastadv") == "fastadv.cli.main:main"
    assert {f"fastadv-{name}" for name in COMMANDS} == set(scripts)


def test_the_list_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line.split()) > 4
    assert main([]) == 2


@pytest.mark.parametrize("name", ["results", "fastadv-results"])
def test_a_command_gets_the_rest(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its output, its errors and its exit codes are its own."""
    assert main([name, "list", str(tmp_path / "nothing")]) != 0
    assert capsys.readouterr().err.startswith("fastadv-results: ")
    with pytest.raises(SystemExit) as stopped:
        main([name, "list", "--help"])
    assert stopped.value.code == 0
    assert "usage: fastadv-results list" in capsys.readouterr().out


def test_a_wrong_name_suggests_the_right_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["trian"]) == 2
    assert "train" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["fastadv", __version__]
