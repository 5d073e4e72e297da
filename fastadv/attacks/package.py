"""The attacks of the package `pyautoattack`, by the authors of AutoAttack.

FAB and Square are available from this package only. Its APGD serves to judge that of
`apgd.py`, on a plain copy of the model that shares nothing with the attack view.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastadv.attacks.contract import AttackResult, SingleAttack
from fastadv.attacks.engine import check_counts, check_labels, check_pixels
from fastadv.attacks.objectives import OBJECTIVES, Context
from fastadv.attacks.outputs import checked_logits, decided
from fastadv.errors import ConfigError, unknown_name
from fastadv.kernels.pixels import to_pixels
from fastadv.models.calling import lacks_gradient
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

AttackName = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "square"]

_MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
# The package warns for every batch of what `checks.py` says once.
_quiet = logging.getLogger(f"{__name__}.quiet")
_quiet.setLevel(logging.ERROR)


@dataclass(frozen=True)
class Budget:
    """Effort of the attacks; the defaults are AutoAttack's standard version.

    Attributes:
        num_steps: Gradient steps of a run of APGD and FAB.
        num_restarts: Runs of each attack; for targeted attacks, per target class.
        num_targets: Number of wrong classes that APGD-T and FAB-T aim at.
        num_queries: Forward passes of Square.
    """

    num_steps: int = 100
    num_restarts: int = 1
    num_targets: int = 9
    num_queries: int = 5000


STANDARD_BUDGET = Budget()


class PixelModel(nn.Module):
    """An attack view as a model that maps [0, 1] images to logits, float32 [N, K]."""

    def __init__(self, view: AttackView) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of float images [N, C, H, W] in [0, 1]."""
        mean, std = (v.view(1, -1, 1, 1) for v in self.view.statistics(x.shape[1]))
        z = ((x - mean) / std).to(self.view.input_dtype)
        return checked_logits(self.view(z)).float()


class FrozenCopy(nn.Module):
    """A copy of a model in evaluation mode, without weight gradients.

    The package computes input gradients by `.backward()`, which on the model itself would
    fill the `.grad` of every parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.copy = copy.deepcopy(model).requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of float images [N, C, H, W] in [0, 1]."""
        return checked_logits(self.copy(x)).float()


class _Tame(nn.Module):
    """A network whose outputs are finite and have a gradient, as the package expects.

    Logits that are not finite become a decision for the class `instead`, and a network
    without gradients gets one of zero. What an image decides is not judged by these outputs.
    """

    def __init__(self, network: nn.Module, instead: int = 0) -> None:
        super().__init__()
        self.network, self.instead = network, instead
        self.broke = False  # whether logits were not finite

    def forward(self, x: Tensor) -> Tensor:
        """Return finite logits of float images [N, C, H, W] in [0, 1]."""
        try:
            logits = self.network(x)
        except RuntimeError as error:
            if not (torch.is_grad_enabled() and lacks_gradient(error)):
                raise
            with torch.no_grad():  # raises again if gradients are not the reason
                logits = self.network(x.detach())
        bad = ~logits.isfinite().all(1, keepdim=True)
        if bool(bad.any()):
            self.broke = True
            wrong = torch.zeros_like(logits)
            wrong[:, self.instead] = 1.0
            logits = torch.where(bad, wrong, logits)
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            logits = logits + 0 * x.flatten(1).sum(1, keepdim=True)
        found: Tensor = logits
        return found


class PackageAttack(SingleAttack):
    """One attack of the package `pyautoattack`.

    Args:
        name: `"apgd-ce"`, `"apgd-dlr"`, `"apgd-t"`, `"fab"` (targeted) or `"square"`.
        threat: Norm and radius, in pixel units.
        budget: Numbers of steps, restarts, targets and queries.
        seed: Seed of the random choices, to which the number of the first image is added.
            They are drawn for a whole batch, so that the batch size changes the result
            of Square and of random starts slightly.
        independent: Attack a plain copy of the model instead of its attack view.

    Raises:
        ConfigError: The package is not installed.
        ValueError: The name is unknown, or a number of the budget is below 1.

    Source:
        Croce and Hein 2020 (AutoAttack, FAB); Andriushchenko et al. 2020 (Square).
    """

    def __init__(
        self,
        name: AttackName,
        threat: ThreatModel,
        budget: Budget = STANDARD_BUDGET,
        *,
        seed: int = 0,
        independent: bool = False,
    ) -> None:
        if name not in get_args(AttackName):
            raise ValueError(unknown_name("attack", name, get_args(AttackName)))
        check_counts(**vars(budget))
        _package()
        self.name = name
        self.threat = threat
        self.budget = budget
        self.seed = seed
        self.independent = independent

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | asdict(self.budget)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the attack view, or the copy, that this attack works on."""
        if isinstance(model, (AttackView, FrozenCopy)):
            return model
        return FrozenCopy(model) if self.independent else AttackView(model)

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Attack the images that are classified correctly; `loss` is the margin."""
        network = self.prepare(model)
        check_pixels(x)
        if isinstance(network, AttackView):
            if network.live_reason is None:
                network.compare(x)
            network = PixelModel(network)
        # The package flattens images by `view`, which needs this layout.
        pixels = to_pixels(x.detach(), torch.float32).contiguous()
        found = pixels.clone()
        with torch.no_grad():
            logits = network(pixels)
            check_labels(y, logits.shape[1])
            check_classes(self.names, logits.shape[1])
            todo = decided(logits) == y
        todo = todo if active is None else todo & active
        rows, passes = todo.nonzero().squeeze(1), 2 * len(x)
        if len(rows):
            devices = [x.device] if x.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                for instead in (0, 1):
                    tame = _Tame(network, instead)
                    attack = self.build(tame, logits.shape[1], self.seed + offset)
                    with counted_passes(network) as counted:
                        moved = attack.perturb(pixels[rows], y[rows]).detach()
                    passes += counted[0]
                    # FAB divides by the length of a gradient, which may be zero.
                    found[rows] = moved.where(moved.isfinite(), pixels[rows])
                    # To images of class 0, logits that were not finite looked right.
                    rows = rows[y[rows] == 0] if tame.broke else rows[:0]
                    if not len(rows):
                        break
        with torch.no_grad():
            logits = network(found)
            loss = OBJECTIVES["margin"].per_sample(logits, Context(y))
        nonfinite = torch.zeros(1, dtype=torch.int64, device=x.device)
        success = decided(logits) != y
        return AttackResult(found, success, loss, nonfinite, passes=passes)

    def build(self, network: nn.Module, num_classes: int, seed: int) -> Any:
        """Return the package's attack, set up as in its standard version."""
        package = _package()
        budget = self.budget
        common = {
            "norm": {"linf": "Linf", "l2": "L2"}[self.threat.norm],
            "eps": self.threat.eps,
            "seed": seed,
            "n_restarts": budget.num_restarts,
        }
        targets = min(budget.num_targets, num_classes - 1)
        if self.name == "square":
            return package.square.SquareAttack(
                network, n_queries=budget.num_queries, resc_schedule=False, **common
            )
        common["n_iter"] = budget.num_steps
        if self.name == "fab":
            return package.fab_pt.FABAttack_PT(
                network, targeted=True, n_target_classes=targets, **common
            )
        if self.name == "apgd-t":
            return package.autopgd_base.APGDAttack_targeted(
                network, n_target_classes=targets, logger=_quiet, **common
            )
        loss = self.name.removeprefix("apgd-")
        return package.autopgd_base.APGDAttack(
            network, loss=loss, logger=_quiet, **common
        )


@contextmanager
def counted_passes(network: nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through a network, in the one number of the list."""
    counted = [0]

    def count(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        counted[0] += len(inputs[0])

    handle = network.register_forward_pre_hook(count)
    try:
        yield counted
    finally:
        handle.remove()


def undefined(name: str, num_classes: int) -> str | None:
    """Return why an attack does not exist for so few classes, or None where it does."""
    least = _MIN_CLASSES.get(name, 0)
    if num_classes >= least:
        return None
    return (
        f"{name} needs at least {least} classes, the model has {num_classes}: "
        "the difference-of-logits ratio divides by lower-ranked logits (DLR by "
        "the third, its targeted form by the third and fourth)"
    )


def check_classes(names: Sequence[str], num_classes: int) -> None:
    """Raise ValueError if a model has too few classes for one of the attacks."""
    for name in names:
        if reason := undefined(name, num_classes):
            raise ValueError(
                f"{reason}. Use apgd-ce, fab, square, or pgd with the margin objective"
            )


def _package() -> Any:
    """Return the package `pyautoattack` with its modules loaded.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        import pyautoattack
        from pyautoattack import autopgd_base, fab_pt, square  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "FAB, Square and the judge of AutoAttack come from the package pyautoattack, "
            f"which cannot be imported ({error}); install it with: pip install "
            "'fastadv[autoattack]'. apgd-ce, apgd-dlr, apgd-t and pgd need no package"
        ) from error
    return pyautoattack
