"""Radii in pixel units, and refusals that say which unit was probably meant."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from fastadv.threat import ThreatModel, parse_norm, parse_pixels, usual_l2


@pytest.mark.parametrize("text", ["linf", "inf", "Linf", "INF", "l_inf"])
def test_spellings_of_linf(text: str) -> None:
    assert parse_norm(text) == ThreatModel(text, 0.1).norm == "linf"  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["l2", "2", "L2", "l_2", 2])
def test_spellings_of_l2(text: str) -> None:
    assert parse_norm(text) == ThreatModel(text, 3).norm == "l2"  # type: ignore[arg-type]


def test_infinity_is_a_norm_too() -> None:
    assert parse_norm(float("inf")) == "linf"  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["l1", "", "3", "l22", "None"])
def test_other_norms_are_refused(text: str) -> None:
    message = rf"norm='{text}' is unknown; accepted: l2 \(or 2\), linf \(or inf\)"
    with pytest.raises(ValueError, match=message):
        parse_norm(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        (" 8 / 255 ", 8 / 255),
        ("0.5/255", 0.5 / 255),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        (3, 3.0),
        (0.03, 0.03),
        ("0", 0.0),
        ("0/255", 0.0),
    ],
)
def test_lengths_are_read(text: str | float, value: float) -> None:
    assert parse_pixels(text) == value


@pytest.mark.parametrize(
    "text",
    ["", "eight", "8/255/2", "8/0", "8//255", "1+1", "__import__('os')", "/255", "8/x"],
)
def test_anything_but_a_number_or_one_division_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a length in pixel units; write 3"):
        parse_pixels(text)


@pytest.mark.parametrize("text", ["-1", "-8/255", "8/-255", "nan", "inf", "1e400/1"])
def test_negative_or_infinite_lengths_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pixel units"):
        parse_pixels(text)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 1000))
def test_a_fraction_is_rounded_once(top: int, bottom: int) -> None:
    assert parse_pixels(f"{top}/{bottom}") == float(Fraction(top, bottom))


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.floats(0, 1e6))
def test_numbers_come_back_exactly(value: float) -> None:
    assert parse_pixels(value) == parse_pixels(repr(value)) == value


def test_linf_radius_in_bytes_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(ValueError, match="of 255") as caught:
        ThreatModel("linf", 4.0)
    assert str(caught.value) == (
        'eps=4 with norm="linf" is outside [0, 1]: eps is in pixel units, so 4 of 255 '
        "is 4/255 (0.0157). For l2 use `norm=l2`."
    )
    assert ThreatModel("linf", 1.0).eps == 1.0
    assert ThreatModel("l2", 4.0).eps == 4.0


def test_a_threat_is_a_value() -> None:
    assert ThreatModel("inf", "8/255") == ThreatModel("linf", 8 / 255)  # type: ignore[arg-type]
    assert len({ThreatModel("l2", 3), ThreatModel("2", "3.0")}) == 1  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        ThreatModel().eps = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("eps", [0, 0.5, 1, 2, 4, 8, 16])
def test_text_reads_as_published_tables_do(eps: float) -> None:
    assert str(ThreatModel("linf", eps / 255)) == f"linf {eps:g}/255"
    assert str(ThreatModel("l2", eps)) == f"l2 {eps:g}"


def test_importing_it_imports_no_torch() -> None:
    """Command lines parse radii before anything heavy is loaded."""
    code = "import sys, fastadv.threat; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("norm", "eps", "side", "said"),
    [
        (
            "l2",
            3,
            32,
            "eps 3 at 32 px is as large per pixel as eps 21 at 224 px; 0.5 is",
        ),
        (
            "l2",
            3,
            64,
            "eps 3 at 64 px is as large per pixel as eps 10.5 at 224 px; 0.86",
        ),
        ("l2", 3, 224, None),
        ("l2", 5, 224, None),
        ("l2", 1, 32, None),
        ("l2", 0.5, 32, None),
        ("l2", 0.1, 224, None),  # published radii that are no 255ths
        ("l2", 0.01, 224, None),
        ("l2", 0.03, 224, None),
        ("l2", 0.05, 224, None),
        ("linf", "8/255", 32, None),
        ("linf", "128/255", 32, "reaches across much of the image box"),
    ],
)
def test_a_radius_is_doubted_by_norm_and_size(
    norm: Any, eps: Any, side: int, said: str | None
) -> None:
    found = ThreatModel(norm, eps).doubt(side)
    assert (found is None) == (said is None)
    assert said is None or said in str(found)


@pytest.mark.parametrize("eps", ["8/255", "0.5/255", "1/255", 4 / 255])
def test_an_l2_radius_of_linf_is_noticed_where_it_is_written(eps: Any) -> None:
    with pytest.warns(UserWarning, match="did you mean `norm=linf`") as caught:
        threat = ThreatModel("l2", eps)
    assert [each.filename for each in caught] == [__file__]
    assert "did you mean `norm=linf`?" in str(threat.doubt(224))


def test_usual_radii_follow_the_size() -> None:
    assert (usual_l2(224), usual_l2(32), usual_l2(64)) == (3.0, 0.5, 0.86)
