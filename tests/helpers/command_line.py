"""Calling the commands in this process, and image folders to call them on."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMANDS = (
    "train",
    "transfer",
    "eval",
    "data",
    "models",
    "report",
    "results",
    "analyze",
    "doctor",
    "demo",
)


class Output:
    """What a command returned and printed."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line that says what was wrong; fails where it is not one line."""
        assert "Traceback" not in self.err
        lines = [line for line in self.err.splitlines() if line.startswith("fastadv-")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        return lines[0]


class Caller:
    """Runs `fastadv-NAME WORDS` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, name: str, *words: object) -> Output:
        self.capsys.readouterr()
        main = importlib.import_module(f"fastadv.cli.{name}").main
        try:
            code = main([str(word) for word in words])
        except SystemExit as stopped:  # tyro's own errors, and --help
            code = int(stopped.code or 0)
        out, err = self.capsys.readouterr()
        return Output(code, out, err)


def picture(label: int, index: int, side: int = 16) -> Image.Image:
    """A noisy image that is bright in one half: above for class 0, below for 1."""
    noise = np.random.default_rng(1000 * label + index)
    pixels = noise.integers(0, 90, (side, side, 3))
    half = slice(None, side // 2) if label == 0 else slice(side // 2, None)
    pixels[half] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def image_folder(root: Path, train: int = 12, val: int = 6) -> Path:
    """train/{above,below} and val/{above,below} of 16 px JPEG files."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(("above", "below")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shown = picture(label, i + 500 * (split == "val"))
                shown.save(folder / f"{i:02}.jpg", quality=95)
    return root
