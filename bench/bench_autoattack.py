"""Our AutoAttack against its authors' package: the same robust accuracy, in less time.

    python bench/bench_autoattack.py DATA_FOLDER [--images 1000] [--cases ...] [--whole]

DATA_FOLDER holds mnist-test.npz, cifar10-jpeg-12k.zip and weights/. Both run APGD-CE and
APGD-T (9 targets) with 100 steps and one restart, batch after batch in turn, on the same
images; with --whole also FAB-T and Square, which are the package's in either case but run
on our attack view in ours. The package gets the plain network in evaluation mode, as its
users give it. One row per case and attack; times are of the second attack on what
survived the first, and so on. On two cores about 5 minutes for mnist, 25 for each of the
cifar cases, many times that with --whole.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results

from fastadv import NormalizedModel, ThreatModel
from fastadv.attacks.autoattack import STANDARD, Cascade, make_attack
from fastadv.data import make_loader, open_dataset, subset
from fastadv.models import load_model
from fastadv.statistics import wilson

BATCH = 250  # the package's default


@dataclass(frozen=True)
class Case:
    """A network with its images, and a threat."""

    data: str
    threat: ThreatModel


# The ResNet-20 is not robust: at 1/255 next to nothing is left, at half of that a fifth.
CASES = {
    "mnist-linf-0.1": Case("mnist", ThreatModel("linf", 0.1)),
    "cifar-linf-0.5": Case("cifar", ThreatModel("linf", "0.5/255")),
    "cifar-linf-1": Case("cifar", ThreatModel("linf", "1/255")),
    "cifar-l2-0.05": Case("cifar", ThreatModel("l2", 0.05)),
    "cifar-l2-0.25": Case("cifar", ThreatModel("l2", 0.25)),
}


def mnist(folder: Path, count: int) -> tuple[NormalizedModel, Tensor, Tensor]:
    """The robust network of Wong and Kolter 2018, and test images."""
    net = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )
    net.load_state_dict(load_file(folder / "weights" / "kw18-mnist.safetensors"))
    with np.load(folder / "mnist-test.npz", allow_pickle=False) as file:
        x, y = (torch.from_numpy(file[key][:count]) for key in ("x", "y"))
    model = NormalizedModel(net, [0.0], [1.0], "kw18-mnist", 10)
    return model.eval(), x[:, None], y.long()


def cifar(folder: Path, count: int) -> tuple[NormalizedModel, Tensor, Tensor]:
    """The ResNet-20 of akamaster/pytorch_resnet_cifar10, and as many of each class."""
    model = load_model(
        folder / "weights" / "resnet20-12fca82f.th",
        "resnet20_cifar",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    images = subset(open_dataset(folder / "cifar10-jpeg-12k.zip").test, count, 0)
    loader = make_loader(images, batch_size=count, resolution=32, train=False)
    (batch,) = loader
    return model.eval(), batch.images, batch.labels


NETWORKS = {"mnist": mnist, "cifar": cifar}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--name", default="autoattack")
    options = parser.parse_args()
    names = STANDARD if options.whole else STANDARD[:2]
    results = Results(options.name)
    for case_name in options.cases:
        case = CASES[case_name]
        model, x, y = NETWORKS[case.data](options.data, options.images)
        sides = {}
        for judge in ("fastadv", "package"):
            whole = make_attack("autoattack", case.threat, judge=judge)
            attack = Cascade(list(zip(names, whole.stages, strict=False)))
            sides[judge] = attack, attack.prepare(model)
        fell: dict[str, list[Tensor]] = {judge: [] for judge in sides}
        seconds = {judge: [0.0] * len(names) for judge in sides}
        for start in range(0, len(y), BATCH):
            rows = slice(start, start + BATCH)
            for judge, (attack, target) in sides.items():
                found = attack(target, x[rows], y[rows], offset=start)
                fell[judge].append(found.fell_to)
                for i, spent in enumerate(found.seconds):
                    seconds[judge][i] += spent
        with torch.no_grad():
            parts = (x[i : i + BATCH] for i in range(0, len(y), BATCH))
            clean = torch.cat([model(part.float() / 255).argmax(1) for part in parts])
        right = clean == y
        for i, name in enumerate(names):
            held = {j: (torch.cat(parts) > i) & right for j, parts in fell.items()}
            robust = {j: h.double().mean().item() for j, h in held.items()}
            ratio = seconds["package"][i] / seconds["fastadv"][i]
            low, high = wilson(int(held["fastadv"].sum()), len(y))
            results.add(
                case=case_name,
                norm=case.threat.norm,
                eps=case.threat.eps,
                images=len(y),
                clean_acc=right.double().mean().item(),
                attack=name,
                robust_acc=robust["fastadv"],
                robust_ci=[round(low, 4), round(high, 4)],
                robust_acc_package=robust["package"],
                same_verdict=(held["fastadv"] == held["package"])
                .double()
                .mean()
                .item(),
                seconds=seconds["fastadv"][i],
                seconds_package=seconds["package"][i],
                faster_than_package=ratio,
            )
            print(
                f"{case_name:16}{name:9}robust {100 * robust['fastadv']:6.2f} %, package "
                f"{100 * robust['package']:6.2f} %   {seconds['fastadv'][i]:8.2f} s, "
                f"package {seconds['package'][i]:8.2f} s   {ratio:.2f} x",
                flush=True,
            )
    results.write()


if __name__ == "__main__":
    main()
