"""fastadv-eval: clean accuracy, and accuracy under PGD, of a checkpoint on a data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import arg

from fastadv.cli import common
from fastadv.errors import ConfigError
from fastadv.threat import ThreatModel
from fastadv.training.config import NormName, Pixels

PROG = "fastadv-eval"


@dataclass(frozen=True, kw_only=True)
class EvalCommand:
    """Measure clean and robust accuracy, with 95 % confidence intervals.

    The attack is PGD with random starts; an image counts as robust when it is classified
    correctly and no iterate of any restart changes that.
    """

    checkpoint: Annotated[str, arg(aliases=["--source", "--model-path"])]
    """A run directory of fastadv-train, or a checkpoint file."""
    data: Annotated[str, arg(aliases=["--dataset"])]
    """A data set name, an ImageFolder or a .zip of one; its evaluation split is used."""
    arch: str | None = None
    """Architecture, where the checkpoint does not say."""
    resolution: int | None = None
    """Side of the images in pixels; default that of the checkpoint's training."""
    norm: Annotated[NormName | None, arg(aliases=["--constraint"])] = None
    """Norm of the attack; default that of the checkpoint's training, else l2."""
    eps: Pixels | None = None
    """Radius in pixel units; default that of the checkpoint's training; 0: no attack."""
    num_steps: Annotated[int, arg(aliases=["--attack-steps"])] = 20
    """PGD steps per restart."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of a step in pixel units; default 2.5 eps / num_steps."""
    num_restarts: int = 1
    """Random restarts; the worst counts."""
    objective: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    """What the attack maximises."""
    num_images: int | None = None
    """Evaluate a stratified, seeded subset of so many images."""
    batch_size: int = 64
    """Images per batch; does not change the result."""
    seed: int = 0
    """Of the subset and the random starts."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto takes a GPU when there is one."""
    backend: str = "auto"
    """Kernel backend (see fastadv-doctor)."""
    workers: int | None = None
    """Decoding threads or processes; default one per core, at most 8."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """skip: count, name and replace by one of its class; fail: stop."""
    json: bool = False
    """Print one JSON object instead of lines."""

    def __post_init__(self) -> None:
        names = ("resolution", "num_steps", "num_restarts", "num_images", "batch_size")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value} must be at least 1")


def evaluate_checkpoint(command: EvalCommand) -> dict[str, Any]:
    """Run the evaluation; plain values, accuracies as shares in [0, 1]."""
    import torch

    from fastadv.attacks import PGD
    from fastadv.data import make_loader, open_dataset, subset
    from fastadv.environment import resolve_device
    from fastadv.evaluation import evaluate
    from fastadv.kernels import use_backend
    from fastadv.transfer.source import open_source

    source = open_source(command.checkpoint, arch=command.arch)
    device = resolve_device(command.device)
    resolution = command.resolution or source.resolution
    splits = open_dataset(command.data, resolution=resolution)
    model = source.load().to(device).to(memory_format=torch.channels_last)
    classes = splits.test.classes
    if model.num_classes != len(classes):
        raise ConfigError(
            f"{source.file} has {model.num_classes} classes, {splits.name} has "
            f"{len(classes)}; evaluate on the data it was trained for, or use "
            "fastadv-transfer"
        )
    if source.classes and source.classes != classes:
        ours, theirs = next(
            (a, b) for a, b in zip(source.classes, classes, strict=True) if a != b
        )
        raise ConfigError(
            f"{source.file} was trained on other classes than {splits.name} has: class "
            f"{ours!r} stands where the data has {theirs!r}; evaluate on the data it was "
            "trained for, or use fastadv-transfer"
        )
    threat = _threat(command, source.norm, source.eps)
    threat.check_side(resolution)
    doubt = threat.doubt(resolution)
    if doubt:
        logging.getLogger(__name__).warning(doubt)
    images = subset(splits.test, command.num_images, command.seed)
    loader = make_loader(
        images,
        batch_size=command.batch_size,
        resolution=resolution,
        train=False,
        augment=source.augment,
        device=device,
        workers=command.workers,
        on_bad_image=command.on_bad_image,
    )
    attack = None
    if threat.eps > 0:
        attack = PGD(
            threat,
            command.num_steps,
            2.5 * threat.eps / command.num_steps
            if command.step_size is None
            else command.step_size,
            random_start=True,
            num_restarts=command.num_restarts,
            objective=command.objective,
            keep="best",
            seed=command.seed,
        )
    with use_backend(command.backend):
        found = evaluate(model, loader, attack)
    result: dict[str, Any] = {
        "checkpoint": str(source.file),
        "checkpoint_sha256": source.digest,
        "arch": source.arch,
        "data": splits.name,
        "resolution": resolution,
        "n": found.clean.n,
        "bad_images": len(loader.bad_images),
        "clean_acc": found.clean.top1,
        "clean_ci": found.clean.interval("top1"),
    }
    if attack is not None and found.robust is not None:
        result |= {
            "robust_acc": found.robust.top1,
            "robust_ci": found.robust.interval("top1"),
            "norm": threat.norm,
            "eps": threat.eps,
            "num_steps": attack.num_steps,
            "step_size": attack.step_size,
            "num_restarts": attack.num_restarts,
            "objective": attack.objective.name,
            "seed": command.seed,
        }
    return result


def _threat(command: EvalCommand, norm: str | None, eps: float | None) -> ThreatModel:
    if command.norm is not None and command.eps is None and command.norm != norm:
        raise ConfigError(f"--norm {command.norm} needs --eps, e.g. 0.5 or 4/255")
    radius = eps if command.eps is None else command.eps
    return ThreatModel(command.norm or norm or "l2", radius or 0.0)  # type: ignore[arg-type]


def _body(argv: list[str]) -> None:
    command = common.parse(EvalCommand, argv, PROG)
    result = evaluate_checkpoint(command)
    if command.json:
        print(json.dumps(result))
        return
    print(f"{result['checkpoint']} ({result['arch']}) on {result['data']}")
    _print_share("clean", result["clean_acc"], result["clean_ci"], result["n"])
    if "robust_acc" in result:
        threat = ThreatModel(result["norm"], result["eps"])
        what = (
            f"PGD-{result['num_steps']} {threat}, {result['num_restarts']} restart(s), "
            f"{result['objective']}"
        )
        _print_share(what, result["robust_acc"], result["robust_ci"], result["n"])
    else:
        print("  no attack: the checkpoint states no radius; give --eps for one")
    if result["bad_images"]:
        print(f"{result['bad_images']} unreadable image(s) were replaced by others")


def _print_share(what: str, value: float, ci: Sequence[float], n: int) -> None:
    low, high = (100 * bound for bound in ci)
    print(f"  {what}: {100 * value:.2f} % [{low:.1f}, {high:.1f}] of {n}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
