"""How figures look: colours that mean the same everywhere, and one quiet style.

The colours of text and lines below are readable on white as they are; the HTML page
turns each into a CSS variable, so that they follow the theme of the reader.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

INK = "#1f2328"
MUTED = "#59636e"
GRID = "#d1d9e0"
WRONG = "#c62828"
PAPER = "#ffffff"  # of letters on a bar, in both themes

# Okabe and Ito 2008, told apart with every common colour blindness (the violet is not
# theirs): blues are standard models, warm colours robust ones.
_STANDARD = ("#0072b2", "#56b4e9", "#8073c9")
_ROBUST = ("#d55e00", "#e69f00", "#cc79a7", "#009e73")
_UNKNOWN = ("#767676", "#a3a3a3")
_STANDARD_NAMES = ("standard", "std", "clean", "natural")

# CSS variable of each colour that changes with the theme; the rest reads on both.
THEMED = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    WRONG: "--wrong",
    _STANDARD[0]: "--standard",
    _ROBUST[0]: "--robust",
}

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "figure.titlesize": 11,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fastadv",
    "text.color": INK,
    # Names of classes and data sets are not mathematics, whatever dollars they hold.
    "text.parse_math": False,
    "xtick.color": GRID,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": GRID,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8,
}


def house_style() -> AbstractContextManager[None]:
    """Draw, or save, in the style of the report; the caller's settings come back."""
    return matplotlib.rc_context(_STYLE)


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of `width` x `height` inches on an Agg canvas, without pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def wrapped(text: str, characters: int) -> str:
    """Break a title or a name into lines of at most so many characters."""
    unbroken = text.replace(" = ", "\u00a0=\u00a0")
    return textwrap.fill(unbroken, characters).replace("\u00a0", " ")


def horizontal_grid(ax: Axes) -> None:
    """Draw faint horizontal lines, and no axis or ticks beside them."""
    ax.grid(axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="both", length=0)


def source_colors(
    names: Iterable[str],
    eps: Mapping[str, float | None] | None = None,
    unknown: Collection[str] = (),
) -> dict[str, str]:
    """Choose one colour per source: blue for standard ones, warm for robust ones.

    Give the result to every figure of a report as `colors`, and a source looks the
    same in all of them even where one is missing.

    Args:
        names: Sources; the first standard and the first robust get the main colours.
        eps: Training radius of each source in pixel units (0 is standard). Where it is
            missing, a name that begins with standard, std, clean or natural is a
            standard source.
        unknown: Sources whose training is unknown; they are grey.

    Returns:
        The hexadecimal colour of each name, in the order of `names`.

    Example:
        >>> source_colors(["standard", "l2 0.5"])
        {'standard': '#0072b2', 'l2 0.5': '#d55e00'}
    """
    chosen = dict.fromkeys(names, "")
    groups: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name in chosen:
        radius = (eps or {}).get(name)
        named_standard = name.lower().startswith(_STANDARD_NAMES)
        ramp: tuple[tuple[str, ...], str]
        if name in unknown:
            ramp = (_UNKNOWN, "summer")
        elif radius == 0 or (radius is None and named_standard):
            ramp = (_STANDARD, "winter")
        else:
            ramp = (_ROBUST, "plasma")
        groups.setdefault(ramp, []).append(name)
    for ramp, group in groups.items():
        chosen |= zip(group, _shades(*ramp, len(group)), strict=True)
    return chosen


def _shades(main: tuple[str, ...], colormap: str, count: int) -> list[str]:
    """Return `count` colours: the main ones, or a ramp where they are too few."""
    if count <= len(main):
        return list(main[:count])
    ramp = colormaps[colormap]
    return [to_hex(ramp(0.1 + 0.75 * i / (count - 1))) for i in range(count)]
