"""Adversarial training in a plain PyTorch loop: three lines more than standard training.

Run: python examples/plain_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from digits import digits, network
from torch.utils.data import DataLoader

from fastadv import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.loops import Adversary


def main(epochs: int = 5, eps: float = 0.15) -> tuple[float, float]:
    """Train, and return clean and robust accuracy on the test images."""
    torch.manual_seed(0)
    train, test = digits()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threat = ThreatModel("linf", eps)
    adversary = Adversary(PGD(threat, num_steps=3, random_start=True))  # 1
    for _ in range(epochs):
        model.train()
        for images, labels in DataLoader(train, batch_size=100, shuffle=True):
            images = adversary(model, images, labels)  # 2
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    judge = PGD.judge(threat, num_steps=20)
    found = evaluate(model, DataLoader(test, batch_size=100), judge)  # 3
    assert found.robust is not None
    print(f"clean {found.clean.top1:.1%}, robust {found.robust.top1:.1%} at {threat}")
    return found.clean.top1, found.robust.top1


if __name__ == "__main__":
    main()
