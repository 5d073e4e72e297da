"""Where and on which kernels a command computes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastadv.errors import ConfigError
from fastadv.ranges import Checked

if TYPE_CHECKING:
    import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Checked):
    """The device and the kernels of a command."""

    device: str = "auto"
    """Device to compute on: cpu, cuda, cuda:1 and so on. With auto, a GPU is used if there
    is one."""
    backend: str = "auto"
    """Kernel backend; fastadv-doctor lists them. With auto, the first that can run is
    used."""


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given, so that times can be taken."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resolve_device(name: str) -> torch.device:
    """Return the device called `auto`, `cpu`, `cuda`, `cuda:1` and so on.

    Raises:
        ConfigError: This is no name of a device, or the machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"`device={name!r}` is not a device; use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"`device={name}` is not there: {torch.cuda.device_count()} CUDA device(s) "
            "found. Use `device=cpu`, or see fastadv-doctor"
        )
    return device


def float32_precision() -> str:
    """Return how CUDA convolves float32 tensors: `tf32`, torch's default, or `ieee`.

    TF32 rounds both factors of a product to 10 bits of mantissa. It concerns training in
    float32 on a GPU; whatever judges or is kept (`exact_float32`) has all 23.
    """
    import torch

    convolutions: Any = torch.backends.cudnn
    reduced = convolutions.conv.fp32_precision == "tf32"
    return "tf32" if reduced else "ieee"


@contextlib.contextmanager
def autotuned(on: bool = True) -> Iterator[None]:
    """Let cuDNN choose the algorithms of convolutions by timing them, inside the block.

    Args:
        on: Whether to do so; else what the process does stays as it is.
    """
    import torch

    convolutions: Any = torch.backends.cudnn
    before = convolutions.benchmark
    convolutions.benchmark = on or before
    try:
        yield
    finally:
        convolutions.benchmark = before


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 convolutions and products on CUDA in float32, and not in TF32.

    Robust and clean accuracies, verdicts and embeddings are measured within, so that they
    are those of the network and comparable with a CPU's. It costs speed on tensor cores,
    and nothing where the network computes in bfloat16 or float16.
    """
    import torch

    convolutions: Any = torch.backends.cudnn
    products = torch.backends.cuda.matmul
    reduced = convolutions.conv.fp32_precision == "tf32"
    # The older switch, which sets the newer ones, too: torch refuses to read it where the
    # newer ones differ from it.
    if reduced:
        convolutions.allow_tf32 = False
    before = products.fp32_precision
    if before == "tf32":
        products.fp32_precision = "ieee"
    try:
        yield
    finally:
        if reduced:
            convolutions.allow_tf32 = True
        if before == "tf32":
            products.fp32_precision = before


def differentiable(function: _Function) -> _Function:
    """Let a function compute gradients although its caller is in inference mode.

    Lightning validates under `torch.inference_mode`, where nothing can be differentiated.
    Arguments that were made there are copied, since autograd refuses them later, too.
    Whether gradients are recorded outside of inference mode does not change.
    """

    @functools.wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        import torch

        def usable(value: Any) -> Any:
            made_there = isinstance(value, torch.Tensor) and value.is_inference()
            return value.clone() if made_there else value

        if not torch.is_inference_mode_enabled():
            args = tuple(map(usable, args))
            return function(*args, **{k: usable(v) for k, v in options.items()})
        with torch.inference_mode(False):
            args = tuple(map(usable, args))
            return function(*args, **{k: usable(v) for k, v in options.items()})

    return cast(_Function, called)
