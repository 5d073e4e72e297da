"""The data and the network of the examples: scikit-learn's digits, and two convolutions."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def digits(count: int = 1500) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test images [1, 8, 8] in [0, 1] with their classes."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    return (
        TensorDataset(images[:count], labels[:count]),
        TensorDataset(images[1500:], labels[1500:]),
    )


def network() -> nn.Sequential:
    """Return a network of images [N, 1, 8, 8] in [0, 1] that returns logits [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
