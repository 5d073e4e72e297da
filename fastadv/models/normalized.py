"""NormalizedModel: a classifier of [0, 1] images that normalises inside.

Attacks and data never normalise; this module does, once. It also answers the three
questions transfer asks of any architecture: what is the embedding, which module is
the head, which blocks come before it. Freezing and training live elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from fastadv.errors import ConfigError
from fastadv.models.heads import (
    Classifier,
    MeanOfHeads,
    classes_of,
    classifiers,
    replace_heads,
    width_of,
    write_heads,
)
from fastadv.models.input_shapes import check_side, set_side
from fastadv.models.intermediate import (
    EMBEDDING,
    Block,
    Stage,
    in_order,
    recording,
    trainable_blocks,
)
from fastadv.models.registry import ArchSpec, get_spec, register_network
from fastadv.models.tokens import set_token


class NormalizedModel(nn.Module):
    """A network with its input normalisation.

    Args:
        net: Maps normalised images [N,C,H,W] to logits [N,num_classes].
        mean: Per-channel mean, C values in [0, 1] pixel units.
        std: Per-channel standard deviation, C positive values in the same units.
        arch: Name of the architecture of `net`. None registers a network of your own under
            the name of its class, so that it can be saved, and loaded again in this
            process. With a name that is not registered the model classifies, but has no
            `features`, `head` or `blocks` unless `spec` is given.
        num_classes: Number of logits. None counts those of the last layer; 0 is a trunk
            without a classifier, whose `head` is a layer of no outputs until
            `replace_head` gives it one.
        spec: Where features and head are in a network of your own.

    Attributes:
        net: The wrapped network.
        mean: Buffer [C], float32.
        std: Buffer [C], float32.
        arch: Name of the architecture.
        num_classes: Number of logits.
        image_size: Side of the images that it was made to take by `set_image_size`, or
            None.
        token: The token that `set_token` made its embedding, or None.

    Raises:
        ValueError: `mean` and `std` differ in length, or `std` is not positive.

    Example:
        >>> model = create_model("resnet20_cifar", 10)
        >>> model(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        arch: str | None = None,
        num_classes: int | None = None,
        *,
        spec: ArchSpec | None = None,
    ) -> None:
        super().__init__()
        finite = all(abs(float(value)) < float("inf") for value in (*mean, *std))
        if len(mean) != len(std) or len(mean) == 0 or not finite or min(std) <= 0:
            raise ValueError(
                f"mean={tuple(mean)}, std={tuple(std)} cannot normalise: give one finite "
                "value per channel each, std > 0, in [0, 1] pixel units"
            )
        if arch is None:
            arch = register_network(net, mean, std)
        if num_classes is None:
            spec = spec or get_spec(arch)
            num_classes = classes_of(net, spec.head_paths(net))
        elif num_classes != 0:
            check_num_classes(num_classes)
        self.net = net
        self.arch = arch
        self.num_classes = num_classes
        self._spec = spec
        self.image_size: int | None = None
        self.token: str | None = None
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32))
        self.register_buffer("std", torch.tensor(list(std), dtype=torch.float32))

    def normalize(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std for images [N,C,H,W], in the dtype of `x`.

        Raises:
            TypeError: `x` is not floating point.
        """
        if not x.is_floating_point():
            raise TypeError(
                f"images are {x.dtype}; the model takes floating point in [0, 1]. "
                "Divide uint8 images by 255 first"
            )
        mean = self.mean.to(x.dtype).view(-1, 1, 1)
        std = self.std.to(x.dtype).view(-1, 1, 1)
        return (x - mean) / std

    def forward(self, x: Tensor) -> Tensor:
        """Classify images [N,C,H,W] in [0, 1]: logits [N,num_classes]."""
        return self.forward_normalized(self.normalize(x))

    def forward_normalized(self, z: Tensor) -> Tensor:
        """Classify images that are already (x - mean) / std, [N,C,H,W]."""
        logits: Tensor = self.net(z)
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Embed images [N,C,H,W] in [0, 1] as [N,embedding_dim].

        The embedding is what feeds `head` (in train mode after any dropout), so
        `head(features(x))` equals `forward(x)` where `head_is_linear`.
        """
        return self.features_normalized(self.normalize(x))

    def features_normalized(self, z: Tensor) -> Tensor:
        """Embed images that are already (x - mean) / std as [N,embedding_dim]."""
        embed = self.spec.features
        if embed is None:
            return self.activations(z, (EMBEDDING,))[EMBEDDING]
        return embed(self.net, z)

    def activations(self, z: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the outputs of named modules; see `fastadv.models.activations`."""
        heads = self.spec.head_paths(self.net) if EMBEDDING in names else ()
        with recording(self.net, names, heads) as found:
            self.net(z)
        return in_order(found, names)

    @property
    def spec(self) -> ArchSpec:
        """The entry of the architecture table.

        Raises:
            ConfigError: `arch` is not registered and no `spec` was given.
        """
        if self._spec is None:
            self._spec = get_spec(self.arch)
        return self._spec

    @property
    def heads(self) -> tuple[Classifier, ...]:
        """The classifiers, whose mean are the logits; nearly always a single one.

        Raises:
            ConfigError: The network has none, or one of another type.
        """
        return classifiers(self.net, self.spec.head_paths(self.net), self.arch)

    @property
    def head(self) -> Classifier | MeanOfHeads:
        """The classifier: `nn.Linear`, `nn.Conv2d`, or the mean of several of them."""
        heads = self.heads
        return heads[0] if len(heads) == 1 else MeanOfHeads(heads)

    def set_head(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Give the head the weights of a linear map of the embedding.

        Args:
            weight: Weights [num_classes, embedding_dim].
            bias: Bias [num_classes]; None stands for zeros.
        """
        write_heads(self.heads, weight, bias)

    @property
    def head_is_linear(self) -> bool:
        """Whether `head(features(x))` is equal to `forward(x)`."""
        linear = self.spec.head_is_linear
        return linear if isinstance(linear, bool) else linear(self.net)

    @property
    def embedding_dim(self) -> int:
        """Width D of the embedding."""
        return sum(width_of(head) for head in self.heads)

    def blocks(self) -> list[Block]:
        """Return the trainable blocks before the head, input to output.

        Each is (name, modules); blocks and `head` together hold every parameter
        exactly once. The last k of them are what `last_k_blocks` trains, for ResNets
        the residual blocks `layer1.0` ... `layer4.2` after the stem `conv1`.
        """
        return trainable_blocks(self.net, self.heads)

    def stages(self) -> tuple[Stage, ...]:
        """Return the stages of a convolutional network, or a transformer's blocks.

        Raises:
            ConfigError: The stages of this architecture are not known.
        """
        stages = self.spec.stages
        found = stages if isinstance(stages, tuple) else stages(self.net)
        if not found:
            raise ConfigError(
                f"the stages of {self.arch} are not known; give them as `stages` of its "
                "ArchSpec"
            )
        return found

    @property
    def channels(self) -> int:
        """Number of channels of its images: 3, or 1 for a grey network."""
        return len(self.mean)

    def set_image_size(self, side: int) -> None:
        """Have the network take images of a side, with interpolated position embeddings.

        Args:
            side: Side of the images in pixels. Most convolutional networks take any.

        Raises:
            ConfigError: The network runs on no images of this side.
        """
        if side != self.image_size and set_side(self.net, side):
            self.image_size = side
        check_side(self.net, self.channels, side)

    def set_token(self, token: str | None) -> None:
        """Have a transformer take another token as its embedding.

        Args:
            token: `class`, `mean` or `pooled`, see `fastadv.models.tokens`; None leaves the
                network as it is.

        Raises:
            ConfigError: The network has no such token.
        """
        if token is not None:
            set_token(self.net, token)
            self.token = token

    def replace_head(self, num_classes: int, seed: int | None = None) -> None:
        """Put a fresh classifier on the embedding, on the old one's device and dtype.

        Args:
            num_classes: Number of logits from now on.
            seed: Makes the new weights reproducible; they are drawn on the CPU, so
                they do not depend on the device. Global random state stays as it was.

        Raises:
            ValueError: `num_classes` is not a positive integer.
        """
        check_num_classes(num_classes)
        with seeded_init(seed):
            replace_heads(self.net, self.spec.head_paths(self.net), num_classes)
        self.num_classes = num_classes

    def extra_repr(self) -> str:
        """Name the architecture in the printed model."""
        return f"arch={self.arch!r}, num_classes={self.num_classes}"


def as_model(net: nn.Module) -> NormalizedModel:
    """Return a network as a `NormalizedModel`; a plain one takes [0, 1] images as they are.

    Raises:
        ConfigError: The network runs on no images of usual size.
    """
    if isinstance(net, NormalizedModel):
        return net
    first = (m for m in net.modules() if isinstance(m, nn.Conv2d))
    channels = 1 if getattr(next(first, None), "in_channels", 3) == 1 else 3
    return NormalizedModel(net, (0.0,) * channels, (1.0,) * channels)


@contextlib.contextmanager
def seeded_init(seed: int | None) -> Iterator[None]:
    """Draw initial weights on the CPU from `seed`, then restore the generator.

    With None nothing changes: weights come from the global generator of the default
    device, which also allows building on the meta device.
    """
    if seed is None:
        yield
        return
    # Not torch.manual_seed: that would reseed the accelerators, and not put them back.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def check_num_classes(num_classes: int) -> None:
    """Raise ValueError unless `num_classes` is a positive integer."""
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r} must be an integer >= 1")


def only_normalizes(model: nn.Module) -> bool:
    """Return whether a model does nothing but normalise images for its network.

    A subclass with a `forward` of its own, and hooks, may do more.
    """
    return (
        isinstance(model, NormalizedModel)
        and type(model).forward is NormalizedModel.forward
        and type(model).normalize is NormalizedModel.normalize
        and type(model).forward_normalized is NormalizedModel.forward_normalized
        and "forward" not in vars(model)
        and not (model._forward_hooks or model._forward_pre_hooks)
    )
