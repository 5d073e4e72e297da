"""A second opinion on networks whose gradients are masked: BPDA, and transfer from a twin.

Rounding, thresholds, one-hot outputs, saturated softmaxes, detached tensors and code
outside of PyTorch leave an attack without a usable gradient, which makes a network look
robust. BPDA passes the gradient through such parts as if they were the identity. What an
image decides is always judged by the model itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadv.attacks.contract import AttackResult, SingleAttack
from fastadv.attacks.engine import worse_of
from fastadv.attacks.outputs import decided, logits_of_model
from fastadv.attacks.pgd import PGD
from fastadv.models.live_view import LiveView
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel

_FLAT = (
    *(torch.round, torch.floor, torch.ceil, torch.trunc, torch.fix, torch.sign),
    *(Tensor.round, Tensor.floor, Tensor.ceil, Tensor.trunc, Tensor.fix, Tensor.sign),
    *(torch.heaviside, Tensor.heaviside, torch.fake_quantize_per_tensor_affine),
)
_SATURATING = (
    *(torch.softmax, Tensor.softmax, F.softmax),
    *(torch.sigmoid, Tensor.sigmoid, F.sigmoid),
)
_DETACHING = (Tensor.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
_LEAVING = (Tensor.numpy, Tensor.__array__)
_ARGMAX = (torch.argmax, Tensor.argmax)
_ONE_HOT = (F.one_hot, torch.scatter, Tensor.scatter, Tensor.scatter_)


class _PassThrough(TorchFunctionMode):
    """Gives parts without a usable gradient that of the identity.

    Args:
        z: The input of the network, [N, C, H, W].
        smooth: Replace these parts by the identity in the forward pass, too.
    """

    def __init__(self, z: Tensor, *, smooth: bool) -> None:
        super().__init__()
        self.z, self.smooth = z, smooth
        # By the id of an integer or boolean tensor: that tensor, and what it is made of.
        self._made_of: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch, or what stands for it; see the class."""
        options = dict(kwargs or {})
        if not torch.is_grad_enabled():
            return func(*args, **options)
        # Detached differences are how networks write a gradient of their own.
        if func in _DETACHING and self.smooth and args:
            return args[0]
        if func in _LEAVING and args:
            return func(args[0].detach(), *args[1:], **options)
        args = self._linked(args)
        first = args[0] if args else options.get("input")
        value = func(*args, **options)
        if not isinstance(first, Tensor) or not isinstance(value, Tensor):
            return value
        if func in _ONE_HOT:
            source = self._source(args)
            return value if source is None else self._instead(value, source)
        if func in _FLAT or (func in _SATURATING and first.dim() == 2):
            return self._instead(value, first)
        if value.is_floating_point():
            source = self._source(args[:1])
            return value if source is None else self._instead(value, source)
        if func in _ARGMAX or value.shape == first.shape:
            source = first if first.is_floating_point() else self._source(args[:1])
            if source is not None:
                self._made_of[id(value)] = value, source
        return value

    def _instead(self, value: Tensor, source: Tensor) -> Tensor:
        """Return `value` with the gradient of `source`, or the source itself."""
        if value.shape != source.shape or not source.requires_grad:
            return value
        if self.smooth:
            return source
        return value.detach().to(source.dtype) + (source - source.detach())

    def _source(self, args: Sequence[Any]) -> Tensor | None:
        """Return what the first integer or boolean tensor of a call is made of."""
        for each in args:
            index = each if isinstance(each, Tensor) else None
            while index is not None:
                if id(index) in self._made_of:
                    return self._made_of[id(index)][1]
                index = index._base if index._is_view() else None
        return None

    def _linked(self, args: Sequence[Any]) -> Sequence[Any]:
        """Link an argument that looks like the input, but has lost the way to it.

        Code that turns images into arrays or integers leaves such tensors.
        """
        alike = [a for a in args if isinstance(a, Tensor) and a.shape == self.z.shape]
        if not alike or any(a.requires_grad for a in alike):
            return args
        return [
            self._instead(a, self.z)
            if any(a is each for each in alike) and a.is_floating_point()
            else a
            for a in args
        ]


class _Context(SimpleNamespace):
    """What a custom function is given in place of autograd's context."""

    needs_input_grad = (True,) * 16

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Do nothing: PyTorch differentiates what the function computes."""

    mark_dirty = mark_non_differentiable = save_for_forward = save_for_backward
    set_materialize_grads = save_for_backward


@contextlib.contextmanager
def _without_own_gradients() -> Iterator[None]:
    """Let custom functions of users compute with the gradient of their forward pass.

    A custom backward pass may return anything. Functions of PyTorch and of this package
    are left alone.
    """
    usual = torch.autograd.Function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **options: Any) -> Any:
        if cls.__module__.split(".")[0] in ("torch", "fastadv", "timm", "torchvision"):
            return usual.__get__(None, cls)(*args, **options)
        own = cls.setup_context is not torch.autograd.Function.setup_context
        return cls.forward(*args) if own else cls.forward(_Context(), *args)

    torch.autograd.Function.apply = classmethod(apply)
    try:
        yield
    finally:
        torch.autograd.Function.apply = usual


class _Surrogate(LiveView):
    """A live view with a gradient through parts that have none that is usable.

    Args:
        model: The model.
        smooth: Replace these parts by the identity in the forward pass, too.
    """

    def __init__(self, model: nn.Module, *, smooth: bool) -> None:
        super().__init__(model)
        self.smooth = smooth

    def forward(self, z: Tensor) -> Tensor:
        """Map normalised images `z` [N, C, H, W] to logits [N, K]."""
        if not self.smooth and not torch.is_grad_enabled():
            return super().forward(z)
        z = z if z.requires_grad else z.detach().requires_grad_()
        with (
            torch.enable_grad(),
            _without_own_gradients(),
            _PassThrough(z, smooth=self.smooth),
        ):
            return super().forward(z)


class _Opinion(SingleAttack):
    """Base class of attacks that climb the loss of other networks than the one judged."""

    def __init__(
        self, threat: ThreatModel, num_steps: int = 100, *, seed: int = 0
    ) -> None:
        self.threat, self.num_steps, self.seed = threat, num_steps, seed

    def describe(self) -> dict[str, Any]:
        """Return the settings of this attack; see `Attack.describe`."""
        return super().describe() | {"num_steps": self.num_steps}

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return the view of `model` that judges."""
        return model if isinstance(model, AttackView) else LiveView(model)

    def _networks(self, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Yield each network whose loss is climbed, and the objective."""
        raise NotImplementedError

    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        """Attack each network in turn; what fools the model itself is kept."""
        found = []
        for network, objective in self._networks(model):
            attack = PGD.judge(
                self.threat, self.num_steps, objective=objective, seed=self.seed
            )
            each = attack(network, x, y, offset=offset)
            fooled = decided(logits_of_model(model, each.x_adv)) != y
            found.append(replace(each, success=fooled))
        nonfinite = torch.stack([each.nonfinite for each in found]).sum(0)
        return replace(reduce(worse_of, found), nonfinite=nonfinite)

    def _verdict(self, model: nn.Module, y: Tensor, found: AttackResult) -> Tensor:
        """Return the success on each image, which the model itself has decided."""
        return found.success


class BPDA(_Opinion):
    """PGD with the identity in place of the gradient of parts that have none to follow.

    Such parts are rounding, thresholds, conversions to integers or arrays, one-hot outputs,
    `detach`, softmax and sigmoid outputs [N, K], and custom backward passes. PGD
    climbs the margin, first with these parts in the forward pass, then without them, which
    is a transfer from an unmasked surrogate. It takes 2 `num_steps` gradients.

    Args:
        threat: Norm and radius, in pixel units.
        num_steps: Gradient steps of each of both runs.
        seed: Seed of the random starts.

    Source:
        Athalye, Carlini and Wagner 2018, "Obfuscated gradients give a false sense of
        security" (backward pass differentiable approximation).
    """

    name = "bpda"

    def _networks(self, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Yield two surrogates of the model."""
        given = model.given if isinstance(model, AttackView) else model
        for smooth in (False, True):
            yield _Surrogate(given, smooth=smooth), "margin"


class Transfer(_Opinion):
    """PGD on another network, judged by the model: the images of one fool the other.

    A twin that was trained alike, without the part that may mask gradients, shows whether
    the model withstands attacks or only their gradients. PGD climbs its cross-entropy, then
    its margin, which takes 2 `num_steps` gradients.

    Args:
        threat: Norm and radius, in pixel units.
        twin: The network that is attacked; it has the same classes.
        num_steps: Gradient steps of each of both runs.
        seed: Seed of the random starts.

    Source:
        Papernot et al. 2017, "Practical black-box attacks against machine learning".
    """

    name = "transfer"

    def __init__(
        self,
        threat: ThreatModel,
        twin: nn.Module,
        num_steps: int = 100,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__(threat, num_steps, seed=seed)
        self.twin = twin if isinstance(twin, AttackView) else AttackView(twin)

    def _networks(self, model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
        """Yield the twin with both objectives."""
        for objective in ("cross_entropy", "margin"):
            yield self.twin, objective
