"""How sources were trained: by which norm and eps, as a key and as a label."""

from __future__ import annotations

from fastadv.results.row import Row
from fastadv.threat import parse_pixels

Threat = tuple[str | None, float]  # norm and eps; (None, 0.0) is standard training


def threat(norm: str | None, eps: float | str) -> Threat:
    """Return a threat model as a key: standard training has no norm, radii are rounded.

    Args:
        norm: `l2` or `linf`.
        eps: Radius in pixel units, or text such as `4/255`.
    """
    radius = parse_pixels(eps) if isinstance(eps, str) else eps
    return (norm, round(radius, 6)) if radius else (None, 0.0)


def source_threat(row: Row) -> Threat | None:
    """Return what the source of a row was trained against; None if it is unknown."""
    source = row.source
    return None if source.eps is None else threat(source.norm, source.eps)


def training_label(trained: Threat | None, kind: str | None = None) -> str:
    """Describe how a source was trained.

    Args:
        trained: Norm and eps of its training; None if unknown.
        kind: A key of `fastadv.threat.TRAINING_KINDS`; None where `trained` decides.
    """
    named = {"texture": "texture-trained", "other": "other training"}.get(kind or "")
    if trained is None:
        return named or "eps unknown"
    norm, eps = trained
    if not eps:
        return named or "standard"
    pixels = f"{eps * 255:.4g}/255" if norm == "linf" else f"{eps:g}"
    return f"{named}, {norm} {pixels}" if named else f"{norm} {pixels}"
