"""Adversarial training in the manner of timm's train.py.

Its loaders normalise images by the model's own mean and std, which the adversary is told.

Run: pip install timm; python examples/timm_script.py --model test_resnet --epochs 3
"""

from __future__ import annotations

import argparse

import timm
import timm.data
import timm.optim
import torch
import torch.nn.functional as F
from digits import digits
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fastadv import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.loops import Adversary


def _normalised(images: TensorDataset, mean: Tensor, std: Tensor) -> TensorDataset:
    pixels, labels = images.tensors
    larger = F.interpolate(pixels, size=(32, 32)).repeat(1, 3, 1, 1)
    return TensorDataset((larger - mean) / std, labels)


def main(words: list[str] | None = None) -> tuple[float, float]:
    """Train, and return clean and robust accuracy on the test images."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--images", type=int, default=1500)
    args = parser.parse_args(words)
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=10)
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    train, test = (_normalised(part, mean, std) for part in digits(args.images))
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=3e-3)
    loss_of = LabelSmoothingCrossEntropy(0.1)
    threat = ThreatModel("linf", args.eps)
    attack = PGD(threat, num_steps=2, random_start=True)
    adversary = Adversary(attack, data["mean"], data["std"])
    for _ in range(args.epochs):
        model.train()
        for images, labels in DataLoader(train, batch_size=100, shuffle=True):
            images = adversary(model, images, labels)
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    judge, loader = PGD.judge(threat, num_steps=10), DataLoader(test, batch_size=100)
    found = evaluate(adversary.view(model), adversary.batches(loader), judge)
    assert found.robust is not None
    print(f"clean {found.clean.top1:.1%}, robust {found.robust.top1:.1%}")
    return found.clean.top1, found.robust.top1


if __name__ == "__main__":
    main()
