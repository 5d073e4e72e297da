"""Networks that are handed in where a source is named: they become files of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastadv.files import fastadv_cache_dir


def named_source(source: Any) -> str:
    """Return the name of a source that may be a network of your own.

    A network is written to the cache folder, under a name made of its weights, and can be
    opened again while it is registered; see `register_arch`.

    Args:
        source: A name, a path, a `NormalizedModel`, or a module of [0, 1] images.

    Raises:
        OutputError: The file cannot be written.
        TypeError: It is none of these.
    """
    if isinstance(source, (str, Path)):
        return str(source)
    from torch import nn

    from fastadv.models import as_model, save_model, state_hash

    if not isinstance(source, nn.Module):
        raise TypeError(
            f"a source is the name of one, a path or a network, not a "
            f"{type(source).__name__}"
        )
    model = as_model(source)
    folder = fastadv_cache_dir() / "networks"
    file = folder / f"{model.arch}-{state_hash(model)[:16]}.safetensors"
    if not file.is_file():
        save_model(model, file)
    return str(file)
