"""No test leaves files in the folder that pytest is called in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The current folder of the session, where for example `results` is made."""
    with contextlib.chdir(tmp_path_factory.mktemp("current")):
        yield
