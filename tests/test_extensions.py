"""Names that import what the user typed, and what is said where that fails."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from fastadv import extensions
from fastadv.errors import ConfigError
from fastadv.extensions import (
    check_name,
    installed,
    is_reference,
    load_reference,
    look_up,
    refuse_reference,
)

CODE = """
ran = "yes"
def loss(logits, labels):
    return logits
class Group:
    inner = 7
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with modules of one's own, which is not on Python's path."""
    (tmp_path / "my_losses.py").write_text(CODE)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "deep.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("import math\nmath.sqrt(-1)\n")
    (tmp_path / "my_needy.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", ".")])
    for name in ("my_losses", "my_package", "my_package.deep", "my_broken", "my_needy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "reference", ["my_losses:loss", "my_package.deep:loss", "my_losses.py:loss"]
)
def test_what_was_typed_is_imported(here: Path, reference: str) -> None:
    path = list(sys.path)
    assert load_reference(reference, "objective")(3, None) == 3
    assert load_reference(reference, "objective") is load_reference(reference, "x")
    assert sys.path == path
    full = f"{here}/my_losses.py:Group.inner"
    assert load_reference(full, "objective") == 7


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("my_loses:loss", "there is no module 'my_loses'; it is looked for where"),
        ("my_losses:los", "unknown name 'los'; perhaps you meant: loss"),
        ("my_losses:Group.iner", "unknown name 'iner'; perhaps you meant: inner"),
        ("my_broken:loss", "cannot be imported: ValueError: math domain error"),
        ("my_broken.py:loss", "cannot be imported: ValueError: math domain error"),
        ("my_needy:loss", "there is no module 'no_such_package'"),
        ("nothing.py:loss", "there is no file nothing.py"),
        ("no colon", "is not written as module:name"),
        ("a:b:c", "is not written as module:name"),
    ],
)
@pytest.mark.usefixtures("here")
def test_what_cannot_be_imported(reference: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_reference(reference, "objective")
    assert said in str(error.value)
    assert str(error.value).startswith(f"objective {reference!r}")


def test_names_that_are_no_references() -> None:
    for name in (
        "pgd",
        "hf:org/name",
        "s3://bucket/x",
        "C:/x.py",
        "torchvision:",
        ":a",
    ):
        assert not is_reference(name)


def test_a_file_imports_nothing(here: Path) -> None:
    refuse_reference("cross_entropy", "recipe.yaml", "objective")
    refuse_reference(None, "recipe.yaml", "objective")
    with pytest.raises(ConfigError, match="a file never imports any; type it yourself"):
        refuse_reference("my_losses:loss", "recipe.yaml", "objective")
    assert "my_losses" not in sys.modules


def _install(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    found = EntryPoints(
        EntryPoint(name, value, "fastadv.objectives") for name, value in entries.items()
    )
    monkeypatch.setattr(
        extensions, "entry_points", lambda group: found.select(group=group)
    )


@pytest.mark.usefixtures("here")
def test_installed_packages_add_names(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, hinge="my_losses:loss", gone="my_gone:loss", mine="other:x")
    known = {"mine": 1}
    assert look_up("objective", "hinge", known, "objectives")(5, None) == 5
    assert look_up("objective", "mine", known, "objectives") == 1  # not the package's
    assert installed("objectives") == ["gone", "hinge", "mine"]
    assert installed("attacks") == []
    with pytest.raises(ConfigError, match="there is no module 'my_gone'"):
        look_up("objective", "gone", known, "objectives")
    with pytest.raises(ValueError, match="perhaps you meant: hinge, mine; one of your"):
        look_up("objective", "hinges", known, "objectives")


@pytest.mark.usefixtures("here")
def test_a_name_is_checked_without_an_import(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, hinge="my_losses:loss")
    for name in ("pgd", "hinge", "my_losses:loss", "nothing:at_all"):
        check_name("objective", name, ["pgd"], "objectives")
    assert "my_losses" not in sys.modules
    with pytest.raises(
        ConfigError, match="unknown objective 'pgdd'; perhaps you meant"
    ):
        check_name("objective", "pgdd", ["pgd"], "objectives")
