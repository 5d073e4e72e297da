"""The analysis of corruption errors: those of a network divided by a reference's."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.derived import chosen_rows
from fastadv.analysis.shift_config import CorruptionErrorConfig
from fastadv.data.corruptions.severities import KINDS, SEVERITIES
from fastadv.errors import ConfigError, DataError
from fastadv.reporting.literature import read_published
from fastadv.results.portions import Portions
from fastadv.results.row import Row
from fastadv.results.shift_settings import CorruptionErrorSetting, ShiftSetting
from fastadv.results.table import ResultsTable

log = logging.getLogger(__name__)

ALEXNET = "alexnet"
_WHAT = "accuracies under corruption, which `fastadv-analyze shift` measures"
_DRAWS = 1000

Errors = NDArray[np.float64]


def prepare(config: CorruptionErrorConfig, table: ResultsTable) -> list[Analysis]:
    """Prepare to divide the errors of networks under corruption by those of a reference.

    Args:
        config: The choices.
        table: Results table with the rows.

    Returns:
        One for each network. Its rows are, in percent, `mce`, the mean over kinds of
        `ce:KIND`, the error summed over severities divided by the reference's; and
        `relative_mce`, the same of the increase over the error on clean images. 100 is
        as good as the reference, less is better. Intervals are over the draw of images,
        which network and reference share (published errors count as exact).

    Raises:
        ConfigError: There are no such rows, the reference is unknown, was measured on
            other images or makes no errors.
        DataError: Arrays of a row are missing or damaged.
    """
    usable = [
        row
        for row in table.rows(kind="shift", metric="corrupted_top1")
        if isinstance(row.setting, ShiftSetting)
    ]
    rows = chosen_rows(table, config.source, usable, _WHAT)
    reference = None
    if config.reference.lower() != ALEXNET:
        references = chosen_rows(table, [config.reference], usable, _WHAT)
        digests = {each.source.digest: each for each in references}
        if len(digests) > 1:
            named = ", ".join(str(each.identity)[:8] for each in digests.values())
            raise ConfigError(
                f"`reference={config.reference}` is the name of {len(digests)} networks; "
                f"give the identity of a row instead: {named}"
            )
    found = []
    for row in rows:
        if config.reference.lower() == ALEXNET:
            _check_published(row)
        else:
            alike = [
                each
                for each in references
                if each.setting_key == row.setting_key and each.seed == row.seed
            ]
            if not alike:
                if not config.source:
                    continue  # Of several data sets, the reference has some.
                raise ConfigError(
                    f"the reference {config.reference} was not measured on "
                    f"{row.setting_label}; measure it with the same flags"
                )
            reference = alike[-1]
        setting = cast(ShiftSetting, row.setting)
        found.append(
            Analysis(
                source=row.source,
                target=row.target,
                setting=CorruptionErrorSetting(
                    measured=str(row.identity),
                    reference=_name(reference),
                    reference_row=None if reference is None else reference.identity,
                    num_images=setting.num_images,
                    corruptions=setting.corruptions,
                    severities=setting.severities,
                ),
                compute=partial(_measure, table, row, reference),
                seed=row.seed,
            )
        )
    if not found:
        raise ConfigError(
            f"the reference {config.reference} shares no images with another network"
        )
    return found


def _name(reference: Row | None) -> str:
    return "AlexNet (published)" if reference is None else reference.source.name


def _check_published(row: Row) -> None:
    setting = cast(ShiftSetting, row.setting)
    wanted = {
        "the 15 kinds of corruption": set(setting.corruptions) == set(KINDS),
        "the severities 1 to 5": set(setting.severities) == set(SEVERITIES),
        "ImageNet's 1000 classes": setting.num_classes == 1000,
        "images of 224 pixels, or files": setting.parameters in (None, 224),
    }
    if missing := [what for what, there in wanted.items() if not there]:
        raise ConfigError(
            f"AlexNet's published errors are for {', '.join(wanted)}; "
            f"{row.source.name} was measured otherwise ({row.setting_label}), which lacks "
            f"{', '.join(missing)}; give a network of the table as the `reference`"
        )


def _measure(
    table: ResultsTable, row: Row, reference: Row | None, portions: Portions
) -> Findings:
    setting = cast(ShiftSetting, row.setting)
    arrays = _arrays(table, row)
    errors, clean = _errors(arrays)
    if reference is None:
        published = {
            each["dataset"]: float(each["value"]) / 100
            for each in read_published("hendrycks2019_corruptions")
        }
        kinds = [published[kind] for kind in setting.corruptions]
        theirs = np.broadcast_to(kinds, (len(errors), len(kinds)))
        their_clean: Errors | None = np.full((len(errors), 1), published["clean"])
    else:
        other = _arrays(table, reference)
        for name in ("labels", "indices"):
            if not np.array_equal(arrays.get(name, ()), other.get(name, ())):
                raise DataError(
                    f"{row.source.name} and {reference.source.name} were measured on other "
                    f"images ({name} differ), for example since one could not be read"
                )
        theirs, their_clean = _errors(other)
    if perfect := [
        k for k, e in zip(setting.corruptions, theirs.mean(0), strict=True) if e == 0
    ]:
        raise ConfigError(
            f"the reference makes no error under {', '.join(perfect)}, by which nothing can "
            "be divided; choose another reference, or other corruptions"
        )
    n = len(errors)
    draw = np.random.default_rng(0)
    weights = [np.full(n, 1 / n)]
    weights += [
        np.bincount(draw.integers(0, n, n), minlength=n) / n for _ in range(_DRAWS)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ces = np.array([100 * (w @ errors) / (w @ theirs) for w in weights])
    numbers = [_measured("mce", ces.mean(1), n)]
    if clean is not None and their_clean is not None:
        more = np.array([w @ errors - w @ clean for w in weights])
        theirs_more = np.array([w @ theirs - w @ their_clean for w in weights])
        if (theirs_more > 0).all():
            relative = (100 * more / theirs_more).mean(1)
            numbers.append(_measured("relative_mce", relative, n))
        else:
            log.warning(
                "%s: relative_mce is left out, since a corruption hardly adds to the "
                "errors of the reference, and nothing can be divided by that",
                row.source.name,
            )
    numbers += [
        _measured(f"ce:{kind}", each, n)
        for kind, each in zip(setting.corruptions, ces.T, strict=True)
    ]
    return Findings(numbers, {})


def _measured(metric: str, drawn: Errors, n: int) -> Measured:
    """Return the first value, and as its interval the quantiles of the others."""
    others = drawn[1:][np.isfinite(drawn[1:])]
    low, high = np.quantile(others, (0.025, 0.975))
    return Measured(metric, float(drawn[0]), float(low), float(high), n)


def _arrays(table: ResultsTable, row: Row) -> dict[str, NDArray[Any]]:
    arrays = table.arrays(row)
    if "right" not in arrays:
        raise DataError(
            f"the row {str(row.identity)[:8]} of {row.source.name} has no decisions on "
            "single images; measure it again in a new results table"
        )
    return arrays


def _errors(arrays: dict[str, NDArray[Any]]) -> tuple[Errors, Errors | None]:
    """Return the error of each image under each kind [n, kinds], and as it is [n]."""
    errors = 1 - arrays["right"].astype(np.float64).mean(1).T
    clean = None
    if "fell_to" in arrays:
        clean = (arrays["fell_to"] < 0).astype(np.float64)[:, None]
    return errors, clean
