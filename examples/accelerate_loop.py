"""Adversarial training in a loop of Accelerate, in any of its precisions.

Run: pip install accelerate; accelerate launch examples/accelerate_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from digits import digits, network
from torch.utils.data import DataLoader

from fastadv import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.loops import Adversary


def main(
    epochs: int = 5, eps: float = 0.15, mixed_precision: str | None = None
) -> tuple[float, float]:
    """Train, and return clean and robust accuracy on the test images."""
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=mixed_precision)
    train, test = digits()
    model = network()
    model, optimizer, loader = accelerator.prepare(
        model,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        DataLoader(train, batch_size=100, shuffle=True),
    )
    threat = ThreatModel("linf", eps)
    adversary = Adversary(PGD(threat, num_steps=3, random_start=True))
    for _ in range(epochs):
        model.train()
        for images, labels in loader:
            images = adversary(model, images, labels)  # the prepared model
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    # Every process judges all images; each could take a part of them.
    judge, batches = PGD.judge(threat, num_steps=20), DataLoader(test, batch_size=100)
    found = evaluate(adversary.view(model), batches, judge)
    assert found.robust is not None
    accelerator.print(f"clean {found.clean.top1:.1%}, robust {found.robust.top1:.1%}")
    return found.clean.top1, found.robust.top1


if __name__ == "__main__":
    main()
