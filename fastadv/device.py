"""Where and on which kernels a command computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastadv.errors import ConfigError
from fastadv.ranges import Checked

if TYPE_CHECKING:
    import torch


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
