"""The analysis of effective robustness: accuracy beyond what standard accuracy predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fastadv.analysis.contract import Analysis, Findings, Measured
from fastadv.analysis.derived import chosen_rows, newest
from fastadv.analysis.shift_config import EffectiveConfig
from fastadv.errors import ConfigError, unknown_name
from fastadv.results.portions import Portions
from fastadv.results.row import Row
from fastadv.results.shift_settings import EffectiveSetting, ShiftSetting
from fastadv.results.table import ResultsTable
from fastadv.statistics.effective import (
    LEAST_NETWORKS,
    fit_expectation,
    smoothed_share,
)

_POINTS = 50  # of the line that is drawn


def prepare(config: EffectiveConfig, table: ResultsTable) -> list[Analysis]:
    """Prepare to compare accuracy under shift with what standard accuracy leads to expect.

    Args:
        config: The choices.
        table: Results table with the rows.

    Returns:
        One for each network. Its row is `effective_robustness`, in points of percent,
        with the interval in which it would lie for a standard network moved to the
        accuracy of this one; it leaves out 0 where the network differs from standard
        ones. Arrays: `standard` and `shifted` accuracies of the fitted networks in
        percent and their `names`; `own`, both accuracies of the network; `line`,
        standard and expected accuracy and its interval, [4, m].

    Raises:
        ConfigError: There are no such rows, or too few standard networks.
    """
    shifts = [
        row
        for row in table.rows(kind="shift")
        if isinstance(row.setting, ShiftSetting)
        and row.metric == ("corrupted_top1" if row.setting.corruptions else "top1")
    ]
    names = dict.fromkeys(row.target.name for row in shifts)
    if shifts and config.data not in names:
        raise ConfigError(
            f"{unknown_name('shifted data set', config.data, names)}; {table.path} has "
            "these from `fastadv-analyze shift`"
        )
    shifts = [row for row in shifts if row.target.name == config.data]
    what = f"accuracy on {config.data}, which `fastadv-analyze shift` measures"
    chosen = chosen_rows(table, config.source, shifts, what)
    for name in config.fitted:
        chosen_rows(table, [name], shifts, what)  # Raises where there is none.
    found: list[Analysis] = []
    reason = None
    for row in chosen:
        alike = newest(shifts, lambda other, row=row: _alike(other, row))  # type: ignore[misc]
        standard = _standard_rows(config, table, alike)
        if row.source.digest not in standard:
            reason = f"{row.source.name} has no standard accuracy on {config.standard}"
            if config.source:
                raise ConfigError(f"{reason}; measure it with fastadv-eval")
            continue
        fitted = {
            digest: each
            for digest, each in alike.items()
            if _is_fitted(each, config) and digest in standard
        }
        if not config.source and row.source.digest in fitted:
            continue
        fitted.pop(row.source.digest, None)
        found.append(_effective(config, table, row, fitted, standard))
    if not found:
        raise ConfigError(
            reason
            or f"all networks with accuracy on {config.data} are standard ones, which the "
            "line is fitted to; name one as the `source` to compare it with the others"
        )
    return found


def _alike(other: Row, row: Row) -> bool:
    return other.setting_key == row.setting_key and other.seed == row.seed


def _is_fitted(row: Row, config: EffectiveConfig) -> bool:
    if config.fitted:
        return row.source.name in config.fitted or any(
            str(row.identity).startswith(each) for each in config.fitted
        )
    return row.source.training == "standard"


def _standard_rows(
    config: EffectiveConfig, table: ResultsTable, alike: Mapping[str | None, Row]
) -> dict[str | None, Row]:
    """Return the row of the standard accuracy of each network, by its digest."""
    if config.standard is None:
        experiments = {row.experiment for row in alike.values()}
        rows = [
            row
            for row in table.rows(kind="shift", metric="top1")
            if row.experiment in experiments
        ]
        own = {row.source.digest for row in rows}
        natural = any(row.metric == "top1" for row in alike.values())
        if natural or not own:
            raise ConfigError(
                f"{config.data} has no clean images of its own; `standard` names the data "
                "set of the standard accuracy"
            )
        return newest(rows, lambda row: True)
    rows = [
        row
        for row in table.rows(kind=["evaluation", "shift"], metric="top1")
        if row.attack is None
    ]
    names = dict.fromkeys(row.target.name for row in rows)
    if config.standard not in names:
        raise ConfigError(
            f"{unknown_name('data set', config.standard, names)}; {table.path} has these "
            "from fastadv-eval and `fastadv-analyze shift`"
        )
    return newest(rows, lambda row: row.target.name == config.standard)


def _effective(
    config: EffectiveConfig,
    table: ResultsTable,
    row: Row,
    fitted: Mapping[str | None, Row],
    standard: Mapping[str | None, Row],
) -> Analysis:
    if len(fitted) < LEAST_NETWORKS:
        names = ", ".join(sorted(each.source.name for each in fitted.values()))
        raise ConfigError(
            f"effective robustness of {row.source.name} needs at least {LEAST_NETWORKS} "
            f"other standard networks to fit an expectation to, and {table.path} has "
            f"{len(fitted)}{f' ({names})' if names else ''} with both accuracies; measure "
            "more, or name them by `fitted`"
        )
    own = standard[row.source.digest]

    def compute(portions: Portions) -> Findings:
        x, y = _shares([standard[d] for d in fitted]), _shares(list(fitted.values()))
        try:
            line = fit_expectation(x, y, config.scale)
        except ValueError as error:
            raise ConfigError(f"{row.source.name}: {error}") from None
        (at,) = _shares([own])
        expected, low, high = (100 * each for each in line.expected(at))
        ends = min([*x, at]), max([*x, at])
        grid = np.linspace(*ends, _POINTS)
        curve = np.array([[g, *line.expected(float(g))] for g in grid])
        return Findings(
            [
                Measured(
                    "effective_robustness",
                    row.value - expected,
                    row.value - high,
                    row.value - low,
                    row.n,
                )
            ],
            {
                "standard": np.array([standard[d].value for d in fitted]),
                "shifted": np.array([each.value for each in fitted.values()]),
                "names": np.array([each.source.name for each in fitted.values()]),
                "own": np.array([own.value, row.value]),
                "line": 100 * curve.T,
            },
        )

    return Analysis(
        source=row.source,
        target=row.target,
        setting=EffectiveSetting(
            shifted=str(row.identity),
            shift_label=row.setting_label,
            standard=str(own.identity),
            standard_label=f"clean {own.target.name}",
            scale=config.scale,
            fitted=tuple(sorted(str(each.identity) for each in fitted.values())),
        ),
        compute=compute,
        seed=row.seed,
    )


def _shares(rows: Sequence[Row]) -> list[float]:
    return [smoothed_share(row.value, row.n or 1) for row in rows]
