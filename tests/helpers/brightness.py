"""A network that sees the mean brightness of an image and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from fastadv.models import create_model, save_model


def brightness_net(
    folder: Path,
    bright: int,
    dark: int,
    classes: Sequence[str] = ("n1", "n2", "n3", "n4"),
) -> Path:
    """Save a network that calls bright images class `bright`, and others `dark`."""
    model = create_model("resnet8_cifar", len(classes), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        conv, norm = model.net.conv1, model.net.bn1
        conv.weight[0, :, 1, 1] = 1
        norm.weight.fill_(1)
        model.head.weight[bright] = 5
        model.head.bias[dark] = 1
    file = folder / f"bright{bright}dark{dark}.safetensors"
    save_model(model, file, {"resolution": 16, "classes": list(classes)})
    return file
