"""How a transfer is carried out, after protocol and flags.

The published procedures are to the letter. Their flaws, and what flags changed in them,
are kept as data.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from fastadv.data.loading.geometry import usual_preparation
from fastadv.errors import ConfigError
from fastadv.results.row import Defect, Departure
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.protocols import (
    ON_TEST,
    PROTOCOLS,
    TRAIN_BN,
    Procedure,
    Task,
    prescribed,
)
from fastadv.transfer.tuning_config import SGD_CHOICES

_SALMAN_MODES = ("fixed_feature", "full_network")

_ZHANG_METHODS = ("standard", "pgd_at", "trades", "discrepancy")
# Their images were resized without keeping the aspect ratio.
_ZHANG_AUGMENT = Departure(
    name="augment",
    ours="flips and crops of padded images",
    published="flips and crops of 224 px from images resized to 256 x 256",
)

_UTRERA_BLOCKS = (0, 1, 3, 9)
# The choices that repair a defect.
_REPAIRS = {
    TRAIN_BN: ("frozen_bn", ("eval",)),
    ON_TEST: ("select_on", ("val", "none")),
}


def make_procedure(
    config: TransferConfig,
    dataset: str,
    num_pool: int,
    resolution: int,
    *,
    misfreezing: Defect | None = None,
) -> Procedure:
    """Return how `config` is carried out on `dataset`.

    Args:
        config: The choices of the experiment.
        dataset: Name of the data set.
        num_pool: Number of images to train on, those for validation included.
        resolution: Side of the images in pixels.
        misfreezing: What freezing by name does wrong to the network.

    Raises:
        ConfigError: There are several learning rates and nothing to choose one on, or
            the learning rate rises to the end.
    """
    task = Task(
        dataset=dataset,
        num_pool=num_pool,
        mode=config.mode,
        k=config.k,
        resolution=resolution,
        misfreezing=misfreezing,
    )
    published = prescribed(config.protocol, task)
    given: dict[str, Any] = {
        name: getattr(config, name)
        for name in (*SGD_CHOICES, "optimizer", "lrs_head")
        if getattr(config, name) is not None
    }
    given |= {"select_on": config.selects_on, "select_by": config.selects_by}
    given |= {"refit": config.refits}
    if config.frozen_bn is not None:
        given["frozen_bn"] = config.frozen_bn
    if config.rates is not None:
        given["lrs"] = config.rates
    if config.selects_on == "none":
        given["select_every"] = None
    if config.augment != "auto":
        given["augment"] = config.augment
    departures = _never_run(config)
    if config.protocol == "zhang2023" and "augment" not in given:
        departures.append(_ZHANG_AUGMENT)
    if config.protocol != "fastadv":
        ours = given | {"resolution": resolution}
        theirs = vars(published) | {"select_on": config.prescribed.select_on}
        theirs["resolution"] = config.prescribed.side or resolution
        if config.protocol in PROTOCOLS:
            ours |= {name: getattr(config, name) for name in ("precision", "method")}
            theirs |= {"precision": "fp32", "method": "standard"}
        else:  # what the choices say, since a protocol does not
            theirs |= {name: given[name] for name in ("select_by", "refit")}
        augment: Any = published.augment
        if config.protocol == "zhang2023":
            ours["robust_steps"], theirs["robust_steps"] = config.judge_steps, 10
            if config.method in _ZHANG_METHODS:
                theirs["method"] = config.method
            if config.lrs_trunk is not None:  # a grid of both rates was published, too
                theirs |= {name: ours[name] for name in ("lrs", "lrs_head")}
            augment = "rrc"  # test images are resized to 256 px, as those are for
        theirs |= asdict(usual_preparation(augment, resolution))
        for name in ("resize", "interpolation"):
            if getattr(config, name) is not None:
                ours[name] = getattr(config, name)
        departures += [
            Departure(name=name, ours=_text(value), published=_text(theirs[name]))
            for name, value in ours.items()
            if value != theirs[name]
        ]
    repaired = [d for d, (name, good) in _REPAIRS.items() if given.get(name) in good]
    defects = tuple(d for d in published.defects if d not in repaired)
    given |= {"defects": defects, "departures": tuple(departures)}
    found = replace(published, **given)
    if found.warmup_epochs >= found.epochs:
        raise ConfigError(
            f"`warmup_epochs={found.warmup_epochs}` leaves none of the {found.epochs} "
            "`epochs` at the full learning rate; it must be below"
        )
    exact = config.on_cached_features and config.exact
    if found.select_on == "none" and len(found.lrs) > 1 and not exact:
        raise ConfigError(
            f"`lrs={_text(found.lrs)}`: `protocol={config.protocol}` with "
            "`select_on=none` has one learning rate and chooses nothing; give one, or "
            "`select_on=val`"
        )
    return found


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _never_run(config: TransferConfig) -> list[Departure]:
    """Return the departure of a mode that the paper has no experiment of."""
    mode, k = config.mode, config.k
    if config.protocol == "salman2020" and mode not in _SALMAN_MODES:
        published = " or ".join(_SALMAN_MODES)
        return [Departure(name="mode", ours=mode, published=published)]
    # Fixed features are the last 0 blocks: the head on a network that is frozen.
    blocks = 0 if mode == "fixed_feature" else k
    if config.protocol != "utrera2021" or blocks in _UTRERA_BLOCKS:
        return []
    name, ours = ("mode", mode) if blocks is None else ("k", str(blocks))
    published = f"the last {_text(_UTRERA_BLOCKS)} blocks"
    return [Departure(name=name, ours=ours, published=published)]
