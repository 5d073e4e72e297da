"""Which networks there are, and what a source is, as plain values and as text."""

from __future__ import annotations

import difflib
import fnmatch
from pathlib import Path
from typing import Any

from fastadv.errors import CheckpointError, ConfigError, unknown_name
from fastadv.models import get_spec, list_models
from fastadv.models.architecture_names import SALMAN2020, TIMM_PREFIX
from fastadv.models.checkpoint import decimals, state_hash
from fastadv.models.published import ROBUSTBENCH, SALMAN2020_NAMES, facts_from_name
from fastadv.models.source import Source
from fastadv.models.weights import find_weights, torchvision_files
from fastadv.text_tables import text_table
from fastadv.threat import TRAINING_KINDS, ThreatModel, training_kind

_ACCURACIES = ("epoch", "clean_acc", "robust_acc", "val_clean_acc", "val_robust_acc")


def list_architectures(pattern: str) -> dict[str, dict[str, Any]]:
    """Return what is known of each architecture whose name matches a pattern.

    Args:
        pattern: A name with the wildcards `*`, `?` and `[...]`. Those of timm begin with
            `timm/`; nothing is known of them but their names.

    Raises:
        ConfigError: No architecture matches.
    """
    names = list_models(pattern)
    if not names:
        if not set(pattern) & set("*?["):
            raise ConfigError(unknown_name("architecture", pattern, list_models("*")))
        raise ConfigError(
            f"no architecture matches {pattern!r}; try '*', or 'timm/*' for timm's"
        )
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        rows[name] = {}
        if not name.startswith(TIMM_PREFIX):
            rows[name] = {
                "image_size": get_spec(name).image_size,
                "salman2020": name in SALMAN2020,
                "weights": {
                    source: str(file) if file.is_file() else None
                    for source, file in torchvision_files(name).items()
                },
            }
    return rows


def list_published(pattern: str) -> dict[str, dict[str, Any]]:
    """Return what is known of each published network whose name matches a pattern.

    Args:
        pattern: `salman2020:NAME` or `robustbench:NAME`; NAME may have the wildcards
            `*`, `?` and `[...]`.

    Returns:
        By source: the architecture, the training, the file (None where it is not on this
        machine) and its size in bytes.

    Raises:
        ConfigError: No network matches; the message names near misses.
    """
    scheme, _, wanted = pattern.partition(":")
    known = {"salman2020": SALMAN2020_NAMES, "robustbench": (*ROBUSTBENCH,)}[scheme]
    names = [name for name in known if fnmatch.fnmatchcase(name, wanted or "*")]
    if not names:
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.6)
        hint = f"perhaps you meant: {', '.join(near)}; " if near else ""
        raise ConfigError(
            f"no network of {scheme} matches {wanted!r}; {hint}'{scheme}:*' lists them all"
        )
    rows = {}
    for name in names:
        source = f"{scheme}:{name}"
        if scheme == "salman2020":
            about = facts_from_name(name)
            arch, norm, eps = about or (None, None, None)
            kind = training_kind(None, eps)
        else:
            model = ROBUSTBENCH[name]
            arch, norm, eps, kind = model.arch, model.norm, model.eps, model.kind
        file = _file_here(source)
        rows[source] = {
            "arch": arch,
            "norm": norm,
            "eps": eps,
            "kind": kind,
            "file": None if file is None else str(file),
            "bytes": None if file is None else file.stat().st_size,
        }
    return rows


def _file_here(source: str) -> Path | None:
    try:
        return find_weights(source).file
    except (CheckpointError, ConfigError):  # it is not here, or there is no client
        return None


def published_text(rows: dict[str, dict[str, Any]]) -> str:
    """Return what `list_published` returned for a terminal."""
    cells = []
    for source, row in rows.items():
        trained = row["kind"]
        if row["eps"]:
            trained = str(ThreatModel(row["norm"], row["eps"]))
        size = "" if row["file"] is None else f"{row['bytes'] / 1e6:.0f} MB"
        accuracy = row.get("imagenet_accuracy")
        shown = "" if accuracy is None else f"{accuracy:.2f}"
        cells.append([source, row["arch"], trained, shown, size])
    columns = ["source", "architecture", "training", "ImageNet %", "on this machine"]
    return text_table(columns, cells)


def architectures_text(rows: dict[str, dict[str, Any]]) -> str:
    """Return what `list_architectures` returned for a terminal."""
    if not all(rows.values()):  # timm's are names alone
        return "\n".join(rows)
    cells = [
        [
            name,
            row["image_size"],
            "yes" if row["salman2020"] else "",
            " ".join(f"{s}{' (here)' if f else ''}" for s, f in row["weights"].items()),
        ]
        for name, row in rows.items()
    ]
    return text_table(["architecture", "px", "salman2020", "weights"], cells)


def describe_source(source: Source) -> dict[str, Any]:
    """Return everything that is known of a source, as plain values."""
    model = source.load()
    return {
        "name": source.name,
        "file": str(source.file),
        "file_sha256": source.file_digest,
        "arch": source.arch,
        "num_classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "embedding_dim": model.embedding_dim,
        "blocks": len(model.blocks()),
        "mean": decimals(model.mean),
        "std": decimals(model.std),
        "resolution": source.resolution,
        "norm": source.norm,
        "eps": source.eps,
        "kind": source.kind,
        "classes": list(source.classes),
        "state_hash": state_hash(model),
        "metadata": source.metadata(),
    }


def source_text(about: dict[str, Any]) -> str:
    """Return what `describe_source` returned for a terminal."""
    training = "unknown"
    if about["eps"] is not None:
        threat = ThreatModel(about["norm"] or "l2", about["eps"])
        training = f"adversarial, {threat}" if about["eps"] else "standard"
    if about["kind"] in ("texture", "other"):
        training = f"{about['kind']} ({TRAINING_KINDS[about['kind']]})"
    mean, std = (
        " ".join(f"{value:.4g}" for value in about[name]) for name in ("mean", "std")
    )
    lines = {
        "file": about["file"],
        "sha256": about["file_sha256"],
        "architecture": f"{about['arch']}, {about['parameters'] / 1e6:.2f} M parameters",
        "classes": about["num_classes"],
        "embedding": f"{about['embedding_dim']} wide, {about['blocks']} blocks before it",
        "input": f"{about['resolution']} px, mean {mean}, std {std}",
        "training": training,
        "state hash": about["state_hash"],
    }
    metadata = about["metadata"]
    lines |= {name: metadata[name] for name in _ACCURACIES if name in metadata}
    return "\n".join([about["name"], *(f"  {k:13} {v}" for k, v in lines.items())])
