"""Small transfers that fine-tune, and the tensors that they changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastadv.models import NormalizedModel, create_model, save_model
from fastadv.transfer import TransferConfig


def source_file(folder: Path, arch: str = "resnet8_cifar", seed: int = 0) -> Path:
    file = folder / f"{arch}-{seed}.safetensors"
    save_model(create_model(arch, 3, seed=seed), file, {"resolution": 16})
    return file


def tuning_config(source: Path, **changes: Any) -> TransferConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "dataset": "digits",
        "mode": "full_network",
        "num_train": 60,
        "results": str(source.parent / "results"),
        "device": "cpu",
        "workers": 0,
    }
    if changes.get("mode") != "fixed_feature" or "protocol" in changes:
        values |= {"epochs": 1, "lrs": (0.05,), "batch_size": 16}
    return TransferConfig(**(values | changes))


def moved(seen: tuple[dict[str, Tensor], NormalizedModel]) -> set[str]:
    before, model = seen
    after = model.state_dict()
    return {k for k, v in after.items() if not torch.equal(v, before[k])}


def statistics(model: NormalizedModel) -> set[str]:
    ends = ("running_mean", "running_var", "num_batches_tracked")
    return {k for k in model.state_dict() if k.endswith(ends)}
