"""Published networks by name: those of Salman et al. 2020, and ImageNet ones of RobustBench.

Only what a name means is here, without torch; `weights.py` finds and downloads the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from fastadv.errors import ConfigError, unknown_name

SALMAN2020_REPOSITORY = "madrylab/robust-imagenet-models"
"""Where the authors publish their checkpoints on the Hugging Face hub (licence: MIT)."""

FILE_ARCHITECTURES = {
    "densenet": "densenet161",
    "mnasnet": "mnasnet1_0",
    "mobilenet": "mobilenet_v2",
    "shufflenet": "shufflenet_v2_x1_0",
}
"""Architectures by what the authors call them in file names, where that is another name."""

_L2 = ("0", "0.01", "0.03", "0.05", "0.1", "0.25", "0.5", "1", "3", "5")
_LINF = ("0.5", "1.0", "2.0", "4.0", "8.0")  # of 255
_ALL_L2 = ("resnet18", "resnet50", "wide_resnet50_2", "wide_resnet50_4")
_ALL_LINF = ("resnet18", "resnet50", "wide_resnet50_2")
_TWO_L2 = (*FILE_ARCHITECTURES, "resnext50_32x4d", "vgg16_bn")  # eps 0 and 3 alone

SALMAN2020_NAMES: tuple[str, ...] = (
    *(f"{arch}_l2_eps{eps}" for arch in _ALL_L2 for eps in _L2),
    *(f"{arch}_l2_eps{eps}" for arch in _TWO_L2 for eps in ("0", "3")),
    *(f"{arch}_linf_eps{eps}" for arch in _ALL_LINF for eps in _LINF),
)
"""The 67 published checkpoints: the names of their files without `.ckpt`."""

_NAME = re.compile(r"(?P<arch>\w+?)_(?P<norm>l2|linf)_eps(?P<eps>\d+(\.\d+)?)$")
# The ImageNet models of the `robustness` package, which Utrera et al. 2021 transferred.
_ROBUSTNESS = {
    "imagenet_l2_3_0": ("resnet50", "l2", 3.0),
    "imagenet_linf_4": ("resnet50", "linf", 4 / 255),
    "imagenet_linf_8": ("resnet50", "linf", 8 / 255),
}


def facts_from_name(stem: str) -> tuple[str, str | None, float] | None:
    """Return architecture, norm and eps that the name of a published checkpoint states.

    Args:
        stem: Name of the file without its suffix; linf names state eps in 255ths.

    Returns:
        Registered name of the architecture, norm (None for standard training) and eps
        in pixel units; None for any other name.

    Example:
        >>> facts_from_name("densenet_l2_eps3"), facts_from_name("resnet18_l2_eps0")
        (('densenet161', 'l2', 3.0), ('resnet18', None, 0.0))
    """
    if stem in _ROBUSTNESS:
        return _ROBUSTNESS[stem]
    match = _NAME.match(stem)
    if match is None:
        return None
    eps = float(match["eps"]) / (255 if match["norm"] == "linf" else 1)
    arch = FILE_ARCHITECTURES.get(match["arch"], match["arch"])
    return arch, match["norm"] if eps else None, eps


def salman2020_file(name: str) -> str:
    """Return the file of a published checkpoint.

    Args:
        name: As in `SALMAN2020_NAMES`. The architecture may also have its registered
            name, and the radius other digits: `densenet161_l2_eps3.0`.

    Raises:
        ConfigError: There is no such checkpoint; the message names near misses.

    Example:
        >>> salman2020_file("resnet50_linf_eps4")
        'resnet50_linf_eps4.0.ckpt'
    """
    stem = name.removesuffix(".ckpt")
    wanted = facts_from_name(stem)
    for each in SALMAN2020_NAMES:
        if stem == each or (wanted is not None and wanted == facts_from_name(each)):
            return f"{each}.ckpt"
    raise ConfigError(
        unknown_name("checkpoint of Salman et al. 2020", stem, SALMAN2020_NAMES)
    )


@dataclass(frozen=True, kw_only=True)
class RobustBenchModel:
    """A network of RobustBench's ImageNet tables whose architecture can be built.

    Attributes:
        arch: Its architecture.
        drive: Identifier of its file on Google Drive.
        table: The table that lists it, `Linf` or `corruptions`.
        kind: How it was trained, a key of `fastadv.threat.TRAINING_KINDS`.
        resolution: Side in pixels of the images that RobustBench evaluates it on.
        unit: Whether it takes [0, 1] images as they are, without normalisation.
    """

    arch: str
    drive: str
    table: str = "Linf"
    kind: str = "robust"
    resolution: int = 224
    unit: bool = False

    @property
    def eps(self) -> float:
        """Radius of its training in pixel units (4/255 linf throughout), or 0."""
        return 4 / 255 if self.kind == "robust" else 0.0

    @property
    def norm(self) -> str | None:
        """Norm of its adversarial training, or None."""
        return "linf" if self.kind == "robust" else None


def _linf(arch: str, drive: str, **more: Any) -> RobustBenchModel:
    return RobustBenchModel(arch=arch, drive=drive, **more)


def _corruptions(drive: str, kind: str = "other") -> RobustBenchModel:
    return _linf("resnet50", drive, table="corruptions", kind=kind)


# Source: robustbench/model_zoo/imagenet.py at 78fcc9e (MIT licence). Left out are networks
# with code of their own and those whose weights RobustBench rewrites as it reads them.
ROBUSTBENCH = {
    "Salman2020Do_R18": _linf("resnet18", "1OThCOQCOxY6lAgxZxgiK3YuZDD7PPfPx"),
    "Salman2020Do_R50": _linf("resnet50", "1TmT5oGa1UvVjM3d-XeSj_XmKqBNRUg8r"),
    "Salman2020Do_50_2": _linf("wide_resnet50_2", "1OT7xaQYljrTr3vGbM37xK9SPoPJvbSKB"),
    "Engstrom2019Robustness": _linf("resnet50", "1T2Fvi1eCJTeAOEzrH_4TAIwO8HTOYVyn"),
    "Wong2020Fast": _linf(
        "resnet50", "1deM2ZNS5tf3S_-eRURJi-IlvUL8WJQ_w", resolution=288
    ),
    "Chen2024Data_WRN_50_2": _linf(
        "wide_resnet50_2", "1-PBlZVILAKFQ7mF8srKjdkTKJZAr61Uf", unit=True
    ),
    "Liu2023Comprehensive_ConvNeXt-B": _linf(
        "timm/convnext_base", "10-nSm-qUftvfKXHeOAakBQl8rxm-jCbk"
    ),
    "Liu2023Comprehensive_ConvNeXt-L": _linf(
        "timm/convnext_large", "1dIPLNfdQtAnqZrKPyuy3_zDI-FVgJ2FH"
    ),
    "Geirhos2018_SIN": _corruptions("1hLgeY_rQIaOT4R-t_KyOqPNkczfaedgs", "texture"),
    "Geirhos2018_SIN_IN": _corruptions("139pWopDnNERObZeLsXUysRcLg6N1iZHK", "texture"),
    "Geirhos2018_SIN_IN_IN": _corruptions(
        "1xOvyuxpOZ8I5CZOi0EGYG_R6tu3ZaJdO", "texture"
    ),
    "Erichson2022NoisyMix": _corruptions("1wFsiB5h4Fgv6HqOkI_1jR1SZOB_eNK9r"),
    "Erichson2022NoisyMix_new": _corruptions("1Na79fzPZ0Azg01h6kGn1Xu5NoWOElSuG"),
    "Hendrycks2020Many": _corruptions("1kylueoLtYtxkpVzoOA1B6tqdbRl2xt9X"),
    "Hendrycks2020AugMix": _corruptions("1xRMj1GlO93tLoCMm0e5wEvZwqhIjxhoJ"),
}


def robustbench_model(name: str) -> RobustBenchModel:
    """Return what is known of a network of RobustBench.

    Raises:
        ConfigError: It is none of `ROBUSTBENCH`; the message names near misses.
    """
    if name not in ROBUSTBENCH:
        raise ConfigError(
            f"{unknown_name('ImageNet network of RobustBench', name, ROBUSTBENCH)}. Its "
            "other networks have code of their own: load those with robustbench, and "
            "hand the module to a function of fastadv"
        )
    return ROBUSTBENCH[name]
