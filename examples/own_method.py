"""A training method of your own, in steps of your own: clean and adversarial halves.

Run: fastadv-train --method examples/own_method.py:HalfAndHalf --method-option share=0.3
Or in a loop of your own: python examples/own_method.py
A package adds a name for it in its pyproject.toml:
    [project.entry-points."fastadv.methods"]
    half = "mypackage.methods:HalfAndHalf"
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from fastadv import PGD, AttackView, NormalizedModel, ThreatModel
from fastadv.training.method_config import MethodEntry
from fastadv.training.methods import Method, Net, Part
from fastadv.training.step import train_step


class HalfAndHalf(Method):
    """(1 - share) CE(f(x), y) + share CE(f(x'), y), after Goodfellow et al. 2015."""

    # What it takes: the default number of steps of its attack, and its own parameters.
    entry = MethodEntry(num_steps=3, parameters={"share": 0.5})

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update with the logits that training accuracy counts."""
        adversarial = self.net(self.attacked(part, part.targets))
        clean = self.net(self.net.normalized(part.images))
        share = self.parameters["share"]
        losses = (F.cross_entropy(each, part.targets) for each in (clean, adversarial))
        first, second = losses
        yield (1 - share) * first + share * second, adversarial


def main(epochs: int = 3, eps: float = 0.15, share: float = 0.5) -> list[float]:
    """Train, and return the loss of each step."""
    from digits import digits, network

    torch.manual_seed(0)
    train, _ = digits()
    model = NormalizedModel(network(), (0.5,), (0.25,), "digits", 10).train()
    attack = PGD(ThreatModel("linf", eps), num_steps=3, random_start=True)
    method = HalfAndHalf(Net(model), attack, AttackView(model), share=share)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(epochs):
        for images, labels in DataLoader(train, batch_size=100, shuffle=True):
            pixels, step = (255 * images).round().to(torch.uint8), len(losses)
            found = train_step(
                model, pixels, labels, optimizer, method=method, seed=step
            )
            losses.append(float(found.loss))
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
    return losses


if __name__ == "__main__":
    main()
