"""Training methods: the loss that is minimised, and the images it is computed on.

A method consists of an objective and an attack. It yields the losses of a batch, one for
each update; `step.py` makes the updates. The table in `method_config.py` lists the choices
of each method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.attacks import PGD, Context
from fastadv.attacks.objectives import feature_distance, kl_to_clean
from fastadv.kernels import ball_init, normalize, pgd_step_
from fastadv.kernels.pixels import to_pixels
from fastadv.models import NormalizedModel
from fastadv.models.intermediate import EMBEDDING, in_order, recording
from fastadv.models.quick_convs import ExactInput, quick_convs
from fastadv.models.view import AttackView
from fastadv.phases import phase
from fastadv.training.method_config import METHODS, MethodEntry, method_named

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_TINY = 1e-30


class Net:
    """The network in training, which maps normalised images to logits.

    Args:
        model: The network without wrappers.
        precision: `"fp32"`, or `"bf16"` or `"fp16"` for autocast.
        forward: Function from normalised images to logits; by default that of the model.
            A wrapper such as `DistributedDataParallel` is passed here.
        exact_input: Keep the images, and the convolution that reads them, in float32
            under autocast, so that small perturbations are not rounded away.
    """

    def __init__(
        self,
        model: NormalizedModel,
        precision: str = "fp32",
        forward: Callable[[Tensor], Tensor] | None = None,
        *,
        exact_input: bool = False,
    ) -> None:
        self.model, self.exact_input = model, exact_input
        self.dtype = DTYPES.get(precision)
        self.forward = forward or model.forward_normalized

    def __call__(self, z: Tensor) -> Tensor:
        """Return the logits, float32 [N, K], of normalised images `z` [N, C, H, W]."""
        if self.dtype is None:
            with quick_convs(z.device):
                return self.forward(z).float()
        exact = ExactInput(z, self.dtype) if self.exact_input else nullcontext()
        with torch.autocast(z.device.type, dtype=self.dtype), exact:
            return self.forward(z).float()

    def with_features(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and the embedding [N, D] below the head, in one pass."""
        # Not `features_normalized`: under a wrapper, gradients must come from its call.
        heads = self.model.spec.head_paths(self.model.net)
        with recording(self.model.net, (EMBEDDING,), heads) as found:
            logits = self(z)
        return logits, in_order(found, (EMBEDDING,))[EMBEDDING].float()

    def normalized(self, images: Tensor) -> Tensor:
        """Return `images` (uint8, or float in [0, 1]) normalised, in float32."""
        z: Tensor = normalize(images, mean=self.model.mean, std=self.model.std)
        return z


@dataclass(frozen=True)
class Part:
    """Images that pass through the network together: a batch, or a part of one.

    Attributes:
        images: Images [N, 3, H, W], uint8 in 0..255 or float32 in [0, 1].
        labels: Class numbers, int64 [N].
        targets: The labels, or class probabilities, float32 [N, K].
        seed: Random seed of the starts of this update.
        offset: Number of the first image within the batch.
        batch: Number of images in the whole batch, over all ranks.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    seed: int
    offset: int = 0
    batch: int = 0


class Method:
    """Cross-entropy of the images of an attack, and the base of all methods.

    It is min_w E max_d CE(f(x + d), y), or standard training without an attack. With one
    step from a random point it is RS-FGSM; with one step from a point that may lie outside
    of the ball, and without projection, it is N-FGSM. The attack makes the difference; see
    `learner.training_attack`.

    Args:
        net: The network in training.
        attack: Attack on the training images; None trains on them as they are.
        view: Attack view of the model; required with `attack`.
        parameters: Parameters of the method besides its attack, by name.

    Raises:
        ValueError: An attack is given without a view.

    Source:
        Madry et al. 2018, equation 2.1; Wong et al. 2020, algorithm 3; de Jorge et al.
        2022, equation 4.

    Attributes:
        entry: What a method of your own takes: its parameters and their defaults, and the
            number of steps, the objective and the start of its attack.
    """

    entry: ClassVar[MethodEntry] = MethodEntry()

    def __init__(
        self,
        net: Net,
        attack: PGD | None = None,
        view: AttackView | None = None,
        **parameters: float,
    ) -> None:
        if attack is not None and view is None:
            raise ValueError("an attack needs the view of the model: AttackView(model)")
        self.net, self.view, self.parameters = net, view, parameters
        self._full = self.attack = attack

    def scale(self, factor: float) -> None:
        """Scale the radius of the attack by `factor` from now on."""
        if self._full is not None:
            self.attack = self._full.scaled(factor)

    def refresh(self) -> None:
        """Copy the weights of the last update into the attack view."""
        if self.view is not None:
            self.view.refresh()

    def attacked(self, part: Part, labels: Tensor) -> Tensor:
        """Return adversarial images, normalised, float32 [N, 3, H, W]."""
        if self.attack is None or self.view is None:
            return self.net.normalized(part.images)
        with phase("attack"):
            _, z = self.attack.perturb(
                self.view, part.images, labels, seed=part.seed, offset=part.offset
            )
        return z

    def _ascend(
        self, attack: PGD, x: Tensor, images: Tensor, gradient: Tensor, z: Tensor
    ) -> None:
        """Take one step of `attack` in place, and write the next network input to `z`."""
        threat, model = attack.threat, self.net.model
        radii: dict[str, float] = {"step_size": attack.step_size, "eps": threat.eps}
        mean, std = model.mean, model.std
        pgd_step_(
            x, images, gradient, norm=threat.norm, **radii, mean=mean, std=std, z=z
        )

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update, with the logits that training accuracy counts.

        The caller computes the gradients of a loss and makes its update before it asks
        for the next one.
        """
        logits = self.net(self.attacked(part, part.targets))
        yield F.cross_entropy(logits, part.targets), logits

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds beside weights, often none."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class Trades(Method):
    """CE(f(x), y) + beta KL(f(x) || f(x')), where x' maximises that divergence.

    The clean images pass through the network once per update. The authors' code passes them
    twice, which gives the same gradients, but weighs them twice in the running statistics of
    BatchNorm.

    Source:
        Zhang et al. 2019, equation 5 (beta is 1 / lambda).
    """

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update; see `Method.losses`."""
        z_adv = self.attacked(part, part.labels)
        clean, adv = self.net(self.net.normalized(part.images)), self.net(z_adv)
        divergence = kl_to_clean(adv, Context(part.labels, clean)).mean()
        weighted = self.parameters["beta"] * divergence
        yield F.cross_entropy(clean, part.targets) + weighted, adv


class Mart(Method):
    """Boosted cross-entropy of x', and KL weighted by the uncertainty of f on clean x.

    CE(f(x'), y) - log(1 - max_k!=y p_k(x')) + beta KL(p(x) || p(x')) (1 - p_y(x))

    Source:
        Wang et al. 2020, equation 11; 1.0001 in the logarithm as in the authors' code.
    """

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update; see `Method.losses`."""
        z_adv = self.attacked(part, part.labels)
        clean, adv = self.net(self.net.normalized(part.images)), self.net(z_adv)
        true = part.labels[:, None]
        wrong = adv.softmax(1).scatter(1, true, 0.0).amax(1)
        boosted = F.cross_entropy(adv, part.labels) - (1.0001 - wrong).log().mean()
        unsure = 1 - clean.softmax(1).gather(1, true).squeeze(1)
        divergence = kl_to_clean(adv, Context(part.labels, clean))
        loss = boosted + self.parameters["beta"] * (divergence * unsure).mean()
        yield loss, adv


class GradAlign(Method):
    """FGSM, and beta times 1 - cos of the loss gradients at x and at a random x + eta.

    The gradient at x is held constant, as in the authors' code, and is also that of the
    attack where this begins at x with BatchNorm in train mode; the one at x + eta, which
    may lie outside of [0, 1], is differentiated once more. Both are of the network itself.

    Source:
        Andriushchenko and Flammarion 2020, equation 7.
    """

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update; see `Method.losses`."""
        if self.attack is None:
            raise ValueError("gradalign needs an attack, of one step")
        attack, threat = self.attack, self.attack.threat
        images = part.images.contiguous(memory_format=torch.channels_last)
        pixels = to_pixels(images, torch.float32)
        # Around grey, where the box of the pixels cuts nothing off.
        eta = ball_init(
            torch.full_like(pixels, 0.5),
            norm=threat.norm,
            eps=threat.eps,
            seed=part.seed + 1,
            offset=part.offset,
        ).sub_(0.5)
        if attack.bn_mode == "train" and not attack.random_start:
            with phase("attack"):
                z, gradient = self._gradient(pixels, part.targets, create_graph=False)
                x = pixels.clone(memory_format=torch.preserve_format)
                self._ascend(attack, x, images, gradient, z)
            logits = self.net(z)
        else:
            logits = self.net(self.attacked(part, part.targets))
            _, gradient = self._gradient(pixels, part.targets, create_graph=False)
        adversarial = F.cross_entropy(logits, part.targets)
        here = self._by_pixel(gradient)
        _, gradient = self._gradient(pixels + eta, part.targets, create_graph=True)
        there = self._by_pixel(gradient)
        lengths = here.norm(dim=1) * there.norm(dim=1)
        cosine = (here * there).sum(1) / lengths.clamp_min(_TINY)
        # Images without a gradient do not count (no boolean index: it would wait).
        known = lengths > _TINY
        mean = torch.where(known, cosine, 0.0).sum() / known.sum().clamp_min(1)
        yield adversarial + self.parameters["beta"] * (1 - mean), logits

    def _gradient(
        self, images: Tensor, targets: Tensor, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return `images` normalised, and the gradient of the summed cross-entropy there."""
        z = self.net.normalized(images).requires_grad_()
        loss = F.cross_entropy(self.net(z), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z, create_graph=create_graph)
        return z.detach(), gradient

    def _by_pixel(self, gradient: Tensor) -> Tensor:
        """Return a gradient by normalised values as that by pixels, [N, C * H * W]."""
        return (gradient / self.net.model.std.view(-1, 1, 1)).flatten(1)


class Discrepancy(Method):
    """CE(f(x), y) + (beta / B) mean (h(x~) - h(x))^2, for the tuning of robust networks.

    h is the embedding, x~ maximises its distance within the ball, B is the batch size.
    The clean images pass through the network once per update. The authors' code passes them
    three times, once of these after the update, which gives the same gradients, but weighs
    them three times in the running statistics of BatchNorm.

    Source:
        Zhang et al. 2023 (2106.10989), discrepancy mitigating; beta 500, Linf 0.5/255, ten
        steps of 1.25 eps / 10.
    """

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update; see `Method.losses`."""
        z_far = self.attacked(part, part.labels)
        logits, near = self.net.with_features(self.net.normalized(part.images))
        adv, far = self.net.with_features(z_far)
        distance = feature_distance(far, Context(part.labels, near)).mean()
        weight = self.parameters["beta"] / (part.batch or len(part.images))
        yield F.cross_entropy(logits, part.targets) + weight * distance, adv


class Free(Method):
    """Free training: one backward pass updates the weights and the perturbation.

    Each batch is used `replays` times, and the perturbation is carried from batch to
    batch: d <- clip(d + eps sign grad_x). An epoch makes `replays` updates per batch, so
    that many times fewer epochs are needed.

    What is carried is the difference between the attacked and the clean image, both in
    [0, 1]. The authors' code carries d itself, which [0, 1] does not limit: at black and
    white pixels theirs may be longer on the next batch.

    Source:
        Shafahi et al. 2019, algorithm 1.
    """

    def __init__(self, *args: Any, **parameters: Any) -> None:
        super().__init__(*args, **parameters)
        self._deltas: dict[int, Tensor] = {}  # float32 [N, C, H, W] by `Part.offset`

    def refresh(self) -> None:
        """Do nothing: the network itself is differentiated, not its view."""

    def losses(self, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the loss of each update; see `Method.losses`."""
        if self.attack is None:
            raise ValueError("free needs an attack: its radius and step size")
        attack = self.attack
        images = part.images.contiguous(memory_format=torch.channels_last)
        pixels = to_pixels(images, torch.float32)
        carried = self._carried(part.offset, pixels)
        eps = attack.threat.eps  # smaller than the last one's while that warms up
        if attack.threat.norm == "linf":
            carried = carried.clamp(-eps, eps)
        else:
            length = carried.flatten(1).norm(dim=1).clamp_min(_TINY)
            carried = carried * (eps / length).clamp_max(1).view(-1, 1, 1, 1)
        x = (pixels + carried).clamp_(0, 1)
        z = self.net.normalized(x)
        for _ in range(int(self.parameters["replays"])):
            z.requires_grad_()
            logits = self.net(z)
            yield F.cross_entropy(logits, part.targets), logits
            grad, z = z.grad, z.detach()
            if grad is None:
                raise ValueError("free continues only after a backward pass")
            self._ascend(attack, x, images, grad, z)
        self._keep(part.offset, x - pixels)

    def _carried(self, offset: int, like: Tensor) -> Tensor:
        """Return the perturbation of the batch before, zero for images it did not have."""
        held = self._deltas.get(offset)
        if held is None or held.shape[1:] != like.shape[1:]:  # another resolution
            return torch.zeros_like(like)
        held, more = held[: len(like)].to(like.device), len(like) - len(held)
        return F.pad(held, (0, 0, 0, 0, 0, 0, 0, more)) if more > 0 else held

    def _keep(self, offset: int, delta: Tensor) -> None:
        held = self._deltas.get(offset)
        if held is not None and held.shape[1:] == delta.shape[1:]:
            delta = torch.cat([delta, held[len(delta) :].to(delta.device)])
        self._deltas[offset] = delta

    def state_dict(self) -> dict[str, Any]:
        """Return the perturbation that is carried from batch to batch."""
        # On the CPU: ranks exchange them, and the sender's GPU is not the receiver's.
        return {"deltas": {key: delta.cpu() for key, delta in self._deltas.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._deltas = dict(state["deltas"])


CLASSES: dict[str, type[Method]] = {
    "pgd_at": Method,
    "standard": Method,
    "trades": Trades,
    "mart": Mart,
    "free": Free,
    "rs_fgsm": Method,
    "n_fgsm": Method,
    "gradalign": GradAlign,
    "discrepancy": Discrepancy,
}


def method_class(name: str) -> type[Method]:
    """Return the class of a training method; see `method_config.method_named`."""
    found: type[Method] = CLASSES[name] if name in METHODS else method_named(name)
    return found
