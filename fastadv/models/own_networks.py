"""Networks of your own: what is registered of them, without torch.

`register_arch("mine", build)` gives a network a name, and with a name such as
`package.module:function` alone it imports the function. On the command line `--arch` and
`,arch=` after a source do the same with what is typed there, as does the environment
variable FASTADV_ARCH, which other processes inherit. A name that is read out of a file never
imports anything.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fastadv.errors import ConfigError, unknown_name
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX

VARIABLE: Final = "FASTADV_ARCH"
"""The environment variable with names of functions to import, separated by commas."""

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*:[A-Za-z_]\w*(\.\w+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNetwork:
    """A network of your own that has a name; see `register_arch`."""

    name: str
    build: Any
    head: str | tuple[str, ...] | None = None
    features: Callable[[Any, Any], Any] | None = None
    stages: Any = ()
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


_OWN: dict[str, OwnNetwork] = {}


def register_arch(
    name: str,
    build: Any = None,
    *,
    head: str | Sequence[str] | None = None,
    features: Callable[[Any, Any], Any] | None = None,
    stages: Any = (),
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Give a network of your own a name that every function and command accepts.

    A name that is registered again replaces the former entry.

    Args:
        name: The name. `package.module:function` without `build` imports the function.
        build: A function or class that returns the network, an `nn.Module` that maps
            normalised images [N, C, H, W] to logits [N, K]. It is called with the number
            of classes (`num_classes=K`, or its one required argument), or with nothing; its
            last layer is then replaced where it has another number of classes. Or a
            network, which is copied.
        head: Dotted path of the last layer, or several paths where their mean is
            returned. None finds the last layer that ran, from one forward pass.
        features: `features(net, z)` embeds normalised images as [N, D]; None records what
            the last layer reads.
        stages: A tuple of `fastadv.models.Stage`, for the analyses that need them.
        image_size: Side in pixels of the images that it was designed for.
        mean: Mean of its input per channel in [0, 1] units; one value for a grey network.
            None stands for that of ImageNet.
        std: Standard deviation per channel, for which the same holds. A network with a
            normalisation of its own has mean 0 and standard deviation 1.

    Raises:
        ConfigError: The name is one of the library's, or the function cannot be imported.
        ValueError: Only one of `mean` and `std` is given.

    Example:
        >>> register_arch("mine", lambda num_classes: torch.nn.Sequential(
        ...     torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes)))
        >>> create_model("mine", num_classes=10)  # doctest: +SKIP
    """
    if name in ARCHITECTURES or name.startswith(TIMM_PREFIX):
        raise ConfigError(
            f"{name!r} is an architecture of the library; give yours another name"
        )
    if not name or set(name) & set(", \n"):
        raise ConfigError(
            f"{name!r} cannot be the name of an architecture: it has no letters, or holds "
            "a comma or a space"
        )
    if (mean is None) != (std is None):
        raise ValueError(f"mean={mean} and std={std} go together; give both or neither")
    if build is None:
        build = _imported(name)
    _OWN[name] = OwnNetwork(
        name=name,
        build=build,
        head=head if head is None or isinstance(head, str) else tuple(head),
        features=features,
        stages=stages,
        image_size=image_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
    )


def import_arch(name: str) -> None:
    """Import `package.module:function` because the user typed it, here and in processes
    that are started from now on.

    Any other name is left as it is.

    Raises:
        ConfigError: It cannot be imported.
    """
    if name in _OWN or not _FUNCTION.fullmatch(name):
        return
    register_arch(name)
    held = [each for each in os.environ.get(VARIABLE, "").split(",") if each]
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*held, name]))


def _imported(name: str) -> Any:
    if not _FUNCTION.fullmatch(name):
        raise ConfigError(
            f"{name!r} names no function; write package.module:function, or give `build`"
        )
    module, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # as with `python -m`
        sys.path.append(here)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # whatever the code of the user raises
        raise ConfigError(
            f"{name} cannot be imported ({type(error).__name__}: {error}); it is looked "
            "for in the current folder and among the installed packages"
        ) from error
    if not callable(found):
        raise ConfigError(
            f"{name} is a {type(found).__name__}; it must be a function or class that "
            "returns the network"
        )
    return found


def own_network(name: str) -> OwnNetwork | None:
    """Return what is registered under a name; None if nothing is."""
    if name not in _OWN and VARIABLE in os.environ:
        for each in os.environ[VARIABLE].split(","):
            if each and each == name:
                register_arch(each)
    return _OWN.get(name)


def check_arch(name: str) -> None:
    """Raise ConfigError unless a name is that of an architecture; timm's are not checked."""
    known = name in ARCHITECTURES or name.startswith(TIMM_PREFIX)
    if not known and own_network(name) is None:
        raise unknown_arch(name)


def unknown_arch(name: str) -> ConfigError:
    """Return the error for a name that stands for no architecture."""
    if _FUNCTION.fullmatch(name):
        return ConfigError(
            f"the network {name} is not imported because of a name in a file: code runs "
            f"only where you type its name. Type `arch={name}`, set the environment variable "
            f"FASTADV_ARCH={name}, or call fastadv.register_arch({name!r}) first"
        )
    known = unknown_name("architecture", name, [*ARCHITECTURES, *_OWN])
    return ConfigError(
        f"{known}. A network of your own is written package.module:function, or "
        f"registered by fastadv.register_arch({name!r}, build)"
    )
