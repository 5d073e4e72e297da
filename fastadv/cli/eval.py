"""fastadv-eval: clean accuracy, and accuracy under attack, of a checkpoint on a data set."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from fastadv.attacks.config import AttackConfig
from fastadv.cli import common
from fastadv.data.config import ImagesConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError, unknown_name
from fastadv.flags import NormName, Pixels, PrintJson
from fastadv.ranges import AT_LEAST_1
from fastadv.threat import ThreatModel

if TYPE_CHECKING:
    from fastadv.attacks import Attack
    from fastadv.data import Batch, DatasetSplits, Loader
    from fastadv.evaluation.accuracy import Evaluation
    from fastadv.models.source import Source

PROG = "fastadv-eval"
# Of `fastadv.attacks.autoattack`, which would import torch for --help; a test compares.
ATTACKS = ("pgd", "autoattack", "apgd-ce", "apgd-dlr", "apgd-t", "fab", "square")
_PGD_STEPS, _APGD_STEPS = 20, 100


@dataclass(frozen=True, kw_only=True)
class EvalCommand(AttackConfig, ImagesConfig, DeviceConfig):
    """Measure clean and robust accuracy, with 95 % confidence intervals.

    An image counts as robust when it is classified correctly and no attack changes that.
    --attack pgd is quick; --attack autoattack is the standard of the field: APGD-CE,
    APGD-T, FAB-T and Square in turn, each on the images that withstood those before it.
    """

    checkpoint: Annotated[str, arg(aliases=["--source", "--model-path"])]
    """The network: a run directory, a checkpoint file, torchvision:NAME, timm:NAME,
    hf:ORG/NAME or package:NAME. `fastadv-models show SOURCE` describes it."""
    data: Annotated[str, arg(aliases=["--dataset"])]
    """A data set name, an ImageFolder or a .zip of one; its evaluation split is used."""
    arch: str | None = None
    """Architecture, if the checkpoint does not state it."""
    download: bool = False
    """Download a named checkpoint that is not on this machine."""
    resolution: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in pixels. Default: that of the checkpoint's training."""
    norm: Annotated[NormName | None, arg(aliases=["--constraint"])] = None
    """Norm of the attack. Default: that of the checkpoint's training, else l2."""
    eps: Pixels | None = None
    """Radius of the attack in [0, 1] pixel units; 0 means no attack. Default: that of the
    checkpoint's training."""
    attack: Annotated[str, arg(metavar="{" + ",".join(ATTACKS) + "}")] = "pgd"
    """The attack; fab and square need the package pyautoattack."""
    judge: Literal["fastadv", "package"] = "fastadv"
    """Whose APGD runs: that of fastadv on its fused kernels, or that of pyautoattack, with
    everything else of that package (package)."""
    num_steps: Annotated[int | None, AT_LEAST_1, arg(aliases=["--attack-steps"])] = None
    """Number of gradient steps of each run. Default: 20 for pgd, 100 for the others."""
    step_size: Annotated[Pixels | None, arg(aliases=["--attack-lr"])] = None
    """Length of a PGD step in [0, 1] pixel units. Default: 2.5 eps / num_steps."""
    num_restarts: Annotated[int, AT_LEAST_1] = 1
    """Number of random restarts, of which the worst counts."""
    num_targets: Annotated[int, AT_LEAST_1] = 9
    """Number of wrong classes that apgd-t and fab aim at, the likeliest first."""
    num_queries: Annotated[int, AT_LEAST_1] = 5000
    """Number of forward passes of square."""
    objective: Literal["cross_entropy", "margin", "dlr"] = "cross_entropy"
    """Loss that PGD maximises."""
    num_images: Annotated[int | None, AT_LEAST_1] = None
    """Evaluate a stratified, seeded subset of N images. Default: all of them."""
    batch_size: Annotated[int, AT_LEAST_1] = 64
    """Images per batch. It changes the results of what pyautoattack runs."""
    seed: int = 0
    """Random seed of the subset and the random starts."""
    out: Annotated[str | None, arg(aliases=["--out-dir"])] = None
    """Folder for the verdicts on finished batches, from which --resume continues."""
    resume: bool = False
    """Continue the evaluation in --out."""
    json: PrintJson = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack not in ATTACKS:
            raise ConfigError(unknown_name("`attack`", self.attack, ATTACKS))
        if self.attack == "pgd" and self.judge == "package":
            raise ConfigError(
                "`judge=package` has no pgd; use `attack=autoattack` or apgd-ce with it"
            )
        own = self.step_size is not None or self.objective != "cross_entropy"
        if self.attack != "pgd" and own:
            raise ConfigError(
                f"`step_size` and `objective` are pgd's, {self.attack} chooses its own; "
                "leave them out, or use `attack=pgd`"
            )
        if self.resume and self.out is None:
            raise ConfigError("`resume` needs `out`, the folder of what to continue")

    @property
    def steps(self) -> int:
        """`num_steps`, or the default of the attack."""
        return self.num_steps or (_PGD_STEPS if self.attack == "pgd" else _APGD_STEPS)


def evaluate_checkpoint(command: EvalCommand) -> dict[str, Any]:
    """Run the evaluation; plain values, accuracies as shares in [0, 1]."""
    import torch

    from fastadv import __version__
    from fastadv.data import make_loader, open_dataset, subset
    from fastadv.device import resolve_device
    from fastadv.evaluation.evaluate import evaluate
    from fastadv.evaluation.journal import Journal
    from fastadv.kernels import use_backend
    from fastadv.models.source import open_source

    source = open_source(
        command.checkpoint, arch=command.arch, download=command.download
    )
    device = resolve_device(command.device)
    resolution = command.resolution or source.resolution
    splits = open_dataset(command.data, resolution=resolution, **command.options)
    model = source.load().to(device).to(memory_format=torch.channels_last)
    _check_same_classes(source, model.num_classes, splits)
    threat = _threat(command, source.norm, source.eps)
    threat.check_side(resolution)
    doubt = threat.doubt(resolution)
    if doubt:
        logging.getLogger(__name__).warning(doubt)
    attack = _attack(command, threat, model.num_classes)
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
    about: dict[str, Any] = {
        "checkpoint_sha256": source.file_digest,
        "source_hash": source.digest,
        "arch": source.arch,
        "data": splits.name,
        "resolution": resolution,
        "seed": command.seed,
    } | _settings(attack)
    journal = None
    if command.out is not None:
        depends = {
            "data_fingerprint": images.fingerprint,
            "augment": source.augment,
            "batch_size": command.batch_size,
            "fastadv": __version__,
        }
        folder = Path(command.out).expanduser()
        journal = Journal(folder, about | depends, resume=command.resume)
    with use_backend(command.backend):
        found = evaluate(
            model, _shown(loader), attack, checks=attack is not None, journal=journal
        )
    result = {"checkpoint": str(source.file)} | about | _numbers(found)
    result["bad_images"] = len(loader.bad_images)
    if journal is not None:
        journal.finish(result)
    return result


def _check_same_classes(
    source: Source, num_classes: int, splits: DatasetSplits
) -> None:
    classes = splits.test.classes
    if num_classes != len(classes):
        raise ConfigError(
            f"{source.file} has {num_classes} classes, {splits.name} has "
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


def _attack(
    command: EvalCommand, threat: ThreatModel, num_classes: int
) -> Attack | None:
    from fastadv.attacks import PGD
    from fastadv.attacks.autoattack import make_attack
    from fastadv.attacks.package import Budget, check_classes

    if threat.eps == 0:
        return None
    if command.attack == "pgd":
        own = {} if command.step_size is None else {"step_size": command.step_size}
        return PGD.judge(
            threat,
            command.steps,
            num_restarts=command.num_restarts,
            objective=command.objective,
            seed=command.seed,
            compile=command.compile,
            **own,
        )
    budget = Budget(
        command.steps, command.num_restarts, command.num_targets, command.num_queries
    )
    attack = make_attack(
        command.attack, threat, budget, judge=command.judge, seed=command.seed
    )
    check_classes(attack.names, num_classes)
    return attack


def _settings(attack: Attack | None) -> dict[str, Any]:
    """Return what the attack is, as the journal and the printed result name it."""
    if attack is None:
        return {}
    found = attack.describe()
    settings = {"attack": found.pop("name")} | found
    return {k: v for k, v in settings.items() if k not in ("random_start", "keep")}


def _shown(loader: Loader) -> Iterator[Batch]:
    """The batches, with a line on stderr now and then."""
    from fastadv.progress import Progress

    progress = Progress(len(loader))
    for number, batch in enumerate(loader):
        yield batch
        progress.update(number + 1, "batches")


def _numbers(found: Evaluation) -> dict[str, Any]:
    """An evaluation in plain values."""
    numbers: dict[str, Any] = {
        "n": found.clean.n,
        "clean_acc": found.clean.top1,
        "clean_ci": found.clean.interval("top1"),
    }
    if found.robust is None or found.checks is None:
        return numbers
    return numbers | {
        "robust_acc": found.robust.top1,
        "robust_ci": found.robust.interval("top1"),
        "stages": [
            {
                "name": stage.name,
                "attacked": stage.attacked,
                "robust_acc": stage.robust.top1,
                "robust_ci": stage.robust.interval("top1"),
                "seconds": round(stage.seconds, 3),
            }
            for stage in found.stages
        ],
        "checks": {
            "probabilities": found.checks.probabilities,
            "randomised": found.checks.randomised,
            "train_mode": found.checks.train_mode,
            "zero_gradient_share": found.checks.zero_gradient_share,
            "black_box_gain": found.black_box_gain,
        },
        "warnings": found.warnings(),
    }


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
        _print_robust(result)
    else:
        print("  no attack: the checkpoint states no radius; give --eps for one")
    if result["bad_images"]:
        print(f"{result['bad_images']} unreadable image(s) were replaced by others")


def _print_robust(result: dict[str, Any]) -> None:
    threat = ThreatModel(result["norm"], result["eps"])
    what = f"{result['attack']} {threat}"
    if result["attack"] == "pgd":
        what = (
            f"PGD-{result['num_steps']} {threat}, {result['num_restarts']} restart(s), "
            f"{result['objective']}"
        )
    if len(result["stages"]) > 1:
        for stage in result["stages"]:
            name = f"after {stage['name']} ({stage['seconds']:.1f} s)"
            _print_share(name, stage["robust_acc"], stage["robust_ci"], result["n"])
    _print_share(what, result["robust_acc"], result["robust_ci"], result["n"])
    for warning in result["warnings"]:
        print(f"  warning: {warning}")


def _print_share(what: str, value: float, ci: Sequence[float], n: int) -> None:
    low, high = (100 * bound for bound in ci)
    print(f"  {what}: {100 * value:.2f} % [{low:.1f}, {high:.1f}] of {n}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run(PROG, _body, argv)


if __name__ == "__main__":
    raise SystemExit(main())
