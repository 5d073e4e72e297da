"""Adversarial training and robust validation in Lightning, by a callback.

Run: pip install lightning; python examples/lightning_callback.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from digits import digits, network
from torch import Tensor
from torch.utils.data import DataLoader

from fastadv import PGD, ThreatModel
from fastadv.loops import Adversary
from fastadv.loops.lightning import AdversarialTraining


class Digits(lightning.LightningModule):
    """A module as for standard training; nothing in it knows of attacks."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, 10]."""
        return self.model(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the clean accuracy of a batch."""
        images, labels = batch
        self.log("val_acc", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(epochs: int = 5, eps: float = 0.15, network: str | None = "model") -> Any:
    """Train, and return what validation logged."""
    lightning.seed_everything(0, verbose=False)
    train, test = digits()
    threat = ThreatModel("linf", eps)
    robust = AdversarialTraining(
        Adversary(PGD(threat, num_steps=3, random_start=True)),
        network=network,
        validation=PGD.judge(threat, num_steps=10),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            callbacks=[robust],
            default_root_dir=folder,
            accelerator="auto",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(
            Digits(),
            DataLoader(train, batch_size=100, shuffle=True),
            DataLoader(test, batch_size=100),
        )
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    print(found)
    return found


if __name__ == "__main__":
    main()
