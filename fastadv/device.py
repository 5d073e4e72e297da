"""Where and on which kernels a command computes."""

from __future__ import annotations

import functools
from collections.abc import Callable
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
