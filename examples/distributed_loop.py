"""Adversarial training under DistributedDataParallel, on CPUs or GPUs.

The attack takes the wrapper off and exchanges nothing between ranks; only the training pass
goes through it. Each rank draws random starts of its own.

Run: torchrun --nproc-per-node 2 examples/distributed_loop.py
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import digits, network
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from fastadv import PGD, ThreatModel
from fastadv.loops import Adversary


def main(epochs: int = 5, eps: float = 0.15) -> list[float]:
    """Train, and return the loss of each step, averaged over ranks."""
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", dist.get_rank()) if cuda else torch.device("cpu")
    torch.manual_seed(0)  # the same weights on every rank
    train, _ = digits()
    model = DistributedDataParallel(network().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    adversary = Adversary(PGD(ThreatModel("linf", eps), num_steps=3, random_start=True))
    sampler: DistributedSampler[int] = DistributedSampler(train)
    losses = []
    for epoch in range(epochs):
        model.train()
        sampler.set_epoch(epoch)
        for batch in DataLoader(train, batch_size=50, sampler=sampler):
            images, labels = (part.to(device) for part in batch)
            images = adversary(model, images, labels)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total = loss.detach().clone()
            dist.all_reduce(total)
            losses.append(float(total) / dist.get_world_size())
    if dist.get_rank() == 0:
        print(
            f"loss {losses[0]:.2f} -> {losses[-1]:.2f} on {dist.get_world_size()} ranks"
        )
    dist.destroy_process_group()
    return losses


if __name__ == "__main__":
    main()
