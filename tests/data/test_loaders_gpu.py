"""Loaders on a GPU: making a batch never waits for the step before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastadv.data import ArraySet, make_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("augment", ["crop_flip", "rrc"])
@pytest.mark.parametrize("backend", ["memory", "torchvision"])
def test_batches_come_without_waiting(backend: str, augment: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 40, 40, 3), dtype=np.uint8)
    images = ArraySet(pixels, np.arange(64) % 4, list("abcd"), name="toy", split="t")
    options = {"batch_size": 16, "resolution": 32, "train": True, "workers": 0}
    options |= {"augment": augment, "color_jitter": 0.1, "lighting": 0.05}
    loader = make_loader(images, backend=backend, device="cuda", **options)
    host = make_loader(images, backend=backend, **options)
    for _ in loader:  # what is made once may wait
        pass
    loader.set_epoch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loader)
        with pytest.raises(RuntimeError, match="synchroniz"):
            batches[0].labels.sum().item()  # the instrument does see a wait
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch, expected in zip(batches, host, strict=True):
        assert torch.equal(batch.indices.cpu(), expected.indices)
        difference = batch.images.cpu().int() - expected.images.int()
        assert difference.abs().max() <= 1  # products in another order, then rounded
