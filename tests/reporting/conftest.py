"""One tiny model and four images for every test that draws pictures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastadv.models import NormalizedModel, create_model


@pytest.fixture(scope="package")
def model() -> NormalizedModel:
    return create_model("resnet8_cifar", 4, seed=0)


@pytest.fixture(scope="package")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="package")
def labels() -> Tensor:
    return torch.tensor([0, 1, 3])
