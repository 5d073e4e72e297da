"""The analysis of calibration, from the logits that rows have kept."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.derived import chosen_rows
from fastadv.analysis.shift_config import CalibrationConfig
from fastadv.errors import ConfigError, DataError
from fastadv.results.portions import Portions
from fastadv.results.row import Row
from fastadv.results.shift_settings import CalibrationSetting
from fastadv.results.table import ResultsTable
from fastadv.statistics.calibration import (
    Decisions,
    calibration_error,
    decisions,
    equal_mass,
    equal_width,
    error_by_chance,
    error_interval,
    fit_temperature,
    reliability,
)

log = logging.getLogger(__name__)

_KINDS = ("evaluation", "transfer", "shift")
_WHAT = (
    "rows of fastadv-eval, fastadv-transfer or `fastadv-analyze shift` with kept logits"
)


def prepare(config: CalibrationConfig, table: ResultsTable) -> list[Analysis]:
    """Prepare to measure the calibration of rows from the logits that they have kept.

    Args:
        config: The choices.
        table: Results table with the rows.

    Returns:
        One for each row. Its rows are `accuracy` and mean `confidence` in percent;
        `ece`, `adaptive_ece` and `ece_by_chance` (that of a calibrated network with
        these confidences) in points of percent; `nll` in nats; `brier` from 0 to 2;
        with a temperature also `temperature`, `ece_scaled`, `nll_scaled` and
        `brier_scaled`. Of shifts also `corrupted_ece`, `corrupted_nll` and
        `corrupted_brier`, means over corruptions. Arrays: `count`, `bin_confidence` and
        `bin_accuracy` of the reliability diagram, `ece_by_corruption` [kinds,
        severities].

    Raises:
        ConfigError: No row has kept logits, or one that was named has not.
        DataError: Kept logits are damaged or not finite.
    """
    usable = [row for row in table.rows(kind=list(_KINDS)) if _is_first(row)]
    rows = chosen_rows(table, config.source, usable, _WHAT)
    found = []
    without = []
    for row in rows:
        arrays = table.arrays(row)
        if _logits_name(row) not in arrays:
            without.append(row)
            continue
        setting = CalibrationSetting(
            measured=str(row.identity),
            measured_kind=row.kind,
            measured_label=row.setting.label(),
            num_images=len(arrays["labels"]),
            bins=config.bins,
            scaled=config.temperature,
        )
        found.append(
            Analysis(
                source=row.source,
                target=row.target,
                setting=setting,
                compute=partial(_measure, row, table, config),
                seed=row.seed,
                attack=row.attack,
            )
        )
    if without and (config.source or not found):
        raise ConfigError(_no_logits(without))
    if without:
        log.warning(
            "%d of %d rows have no kept logits and are left out",
            len(without),
            len(rows),
        )
    return found


def _is_first(row: Row) -> bool:
    """Return whether a row stands for its logits, and not another of its experiment."""
    return row.kind == "transfer" or row.metric == "top1"


def _logits_name(row: Row) -> str:
    return "clean_logits" if row.attack is None else "attacked_logits"


def _no_logits(rows: list[Row]) -> str:
    names = ", ".join(
        f"{str(row.identity)[:8]} ({row.source.name})" for row in rows[:4]
    )
    more = f" and {len(rows) - 4} more" if rows[4:] else ""
    reason = next((row.not_kept for row in rows if row.not_kept), None)
    return (
        f"the rows {names}{more} have kept no logits"
        f"{f' ({reason})' if reason else ''}; measure them again with `keep=heads`, which "
        "is the default, in a new results table"
    )


def _measure(
    row: Row, table: ResultsTable, config: CalibrationConfig, portions: Portions
) -> Findings:
    arrays = table.arrays(row)
    logits, labels = arrays[_logits_name(row)], arrays["labels"].astype(np.int64)
    try:
        found = decisions(logits, labels)
    except ValueError as error:
        raise DataError(
            f"the row {str(row.identity)[:8]} of {row.source.name}: {error}; measure it "
            "again"
        ) from None
    confidence, right, n = found.confidence, found.right, len(labels)
    width, mass = (
        equal_width(confidence, config.bins),
        equal_mass(confidence, config.bins),
    )
    numbers = [
        Measured("ece", 100 * calibration_error(confidence, right, width),
                 *_percent(error_interval(confidence, right, width)), n),
        Measured("adaptive_ece", 100 * calibration_error(confidence, right, mass),
                 *_percent(error_interval(confidence, right, mass)), n),
        Measured("ece_by_chance", 100 * error_by_chance(confidence, width), n=n),
        Measured.mean_of("nll", found.nll),
        Measured.mean_of("brier", found.brier),
        Measured.share_of("accuracy", int(right.sum()), n),
        Measured.mean_of("confidence", 100 * confidence),
    ]  # fmt: skip
    diagram = reliability(confidence, right, config.bins)
    kept: dict[str, NDArray[Any]] = {
        "count": diagram.count,
        "bin_confidence": diagram.confidence,
        "bin_accuracy": diagram.accuracy,
    }
    if config.temperature:
        clean = arrays.get("clean_logits", logits)
        numbers += _scaled(row, clean, logits, labels, config.bins)
    if row.kind == "shift" and "confidence" in arrays:
        more, by_corruption = _corrupted(arrays, config.bins)
        numbers += more
        kept["ece_by_corruption"] = by_corruption
        kept |= {name: arrays[name] for name in ("corruptions", "severities")}
    return Findings(numbers, kept)


def _percent(ends: tuple[float, float]) -> tuple[float, float]:
    return 100 * ends[0], 100 * ends[1]


def _scaled(
    row: Row,
    clean: NDArray[Any],
    logits: NDArray[Any],
    labels: NDArray[np.int64],
    bins: int,
) -> list[Measured]:
    """Return what a temperature makes of calibration.

    It is fitted to the clean logits of one half of the images and applied to the other
    half, and the other way round, so that no image is scaled by its own label.
    """
    halves = np.random.default_rng(0).permutation(len(labels)) % 2
    temperature = np.ones(len(labels))
    for half in (0, 1):
        own = halves == half
        fitted = None
        if own.any() and np.isfinite(clean).all():
            fitted = fit_temperature(clean[own], labels[own])
        if fitted is None:
            log.warning(
                "%s, row %.8s: no temperature has the largest likelihood, as where every "
                "decision is right; calibration is given as it is alone",
                row.source.name,
                row.identity,
            )
            return []
        temperature[~own] = fitted
    found: Decisions = decisions(logits, labels, temperature)
    which = equal_width(found.confidence, bins)
    ece = calibration_error(found.confidence, found.right, which)
    return [
        Measured("temperature", float(temperature.mean()), n=len(labels)),
        Measured(
            "ece_scaled",
            100 * ece,
            *_percent(error_interval(found.confidence, found.right, which)),
            len(labels),
        ),
        Measured.mean_of("nll_scaled", found.nll),
        Measured.mean_of("brier_scaled", found.brier),
    ]


def _corrupted(
    arrays: dict[str, NDArray[Any]], bins: int
) -> tuple[list[Measured], NDArray[np.float64]]:
    """Return the means over corruptions, and the calibration error under each."""
    confidence = arrays["confidence"].astype(np.float64)
    kinds, severities, n = confidence.shape
    eces = np.array(
        [
            [
                100
                * calibration_error(
                    confidence[k, s],
                    arrays["right"][k, s],
                    equal_width(confidence[k, s], bins),
                )
                for s in range(severities)
            ]
            for k in range(kinds)
        ]
    )
    return [
        Measured("corrupted_ece", float(eces.mean()), n=n),
        Measured.mean_of(
            "corrupted_nll", arrays["nll"].astype(np.float64).mean((0, 1))
        ),
        Measured.mean_of(
            "corrupted_brier", arrays["brier"].astype(np.float64).mean((0, 1))
        ),
    ], eces
