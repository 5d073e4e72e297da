"""Adversarial training of a transformers model by a `Trainer` with one argument more.

Run: pip install 'transformers[torch]'; python examples/huggingface_trainer.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits import digits
from torch.utils.data import Dataset
from transformers import (
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    set_seed,
)

from fastadv import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.loops import Adversary
from fastadv.loops.huggingface import AdversarialTrainer

MEAN, STD = (0.5,), (0.5,)  # of an image processor: its image_mean and image_std


class Rows(Dataset[dict[str, Any]]):
    """Images as an image processor makes them: normalised, in mappings."""

    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        return {"pixel_values": (image - MEAN[0]) / STD[0], "labels": int(label)}


def main(epochs: int = 8, eps: float = 0.1) -> tuple[float, float]:
    """Train, and return clean and robust accuracy on the test images."""
    set_seed(0)
    train, test = digits()
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        num_labels=10,
    )
    threat = ThreatModel("linf", eps)
    adversary = Adversary(PGD(threat, num_steps=3, random_start=True), MEAN, STD)
    with tempfile.TemporaryDirectory() as folder:
        trainer = AdversarialTrainer(
            adversary=adversary,
            model=ViTForImageClassification(config),
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=epochs,
                per_device_train_batch_size=50,
                learning_rate=2e-3,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Rows(train),
            eval_dataset=Rows(test),
        )
        trainer.train()
        batches = adversary.batches(trainer.get_eval_dataloader())
    judge = PGD.judge(threat, num_steps=10)
    found = evaluate(adversary.view(trainer.model), batches, judge)
    assert found.robust is not None
    print(f"clean {found.clean.top1:.1%}, robust {found.robust.top1:.1%}")
    return found.clean.top1, found.robust.top1


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
