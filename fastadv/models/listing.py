"""Which networks there are, and what a source is, as plain values and as text."""

from __future__ import annotations

from typing import Any

from fastadv.errors import ConfigError, unknown_name
from fastadv.models import get_spec, list_models
from fastadv.models.architecture_names import SALMAN2020, TIMM_PREFIX
from fastadv.models.checkpoint import decimals, state_hash
from fastadv.models.source import Source
from fastadv.models.weights import torchvision_files
from fastadv.text_tables import text_table
from fastadv.threat import TRAINING_KINDS, ThreatModel

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
