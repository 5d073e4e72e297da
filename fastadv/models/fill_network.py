"""Build the network that a file holds: which architecture, which of several weights.

`fit_weights.py` finds the places in a file where a network fits. Here one of them is chosen,
and what was chosen for the user is said.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadv.errors import CheckpointError, ConfigError, first_few
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX
from fastadv.models.checkpoint_files import our_header
from fastadv.models.choose_weights import choose_weights, ignored, unexpected
from fastadv.models.dialects import JOIN, dialects
from fastadv.models.fit_weights import (
    BY_ORDER,
    Blueprint,
    Fit,
    Sketch,
    find_fits,
    fit_by_order,
    misfit,
)
from fastadv.models.heads import classifiers, replace_heads
from fastadv.models.input_shapes import channels_in, set_channels, set_side
from fastadv.models.normalized import seeded_init
from fastadv.models.registry import ArchSpec, get_spec
from fastadv.models.tokens import set_token, token_of_keys
from fastadv.models.undrawn import UndrawnParameters

_BUILD_CLASSES = 1000  # any number does: the head is resized to that of the weights
_FEW = 4  # names that a message lists
_NUMBERS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True)
class Filled:
    """A network with the weights of a file, and how they were found.

    Attributes:
        net: The network, in the mode it is built in.
        spec: Its architecture.
        fit: The place in the file that was taken.
        notes: What was chosen for the user, as sentences without a full stop.
        token: The token that the file says to be the embedding of a transformer, or None.
    """

    net: nn.Module
    spec: ArchSpec
    fit: Fit
    notes: tuple[str, ...]
    token: str | None = None


def fill_network(
    tensors: Mapping[str, Tensor],
    arch: str | None,
    file: Path,
    *,
    names: Iterable[str] = (),
    which: str | None = None,
) -> Filled:
    """Build the network that fits the tensors of a file.

    Args:
        tensors: The tensors of the file by path.
        arch: The architecture, or None to find the known one that fits.
        file: Where they came from, for messages.
        names: Names in the file that may be those of its architecture.
        which: Which of several weights to take, such as `ema`; None takes the raw ones.

    Raises:
        CheckpointError: No network fits, or it is not clear which; the message names what
            differs, and the architectures that would fit.
    """
    notes = []
    if arch is None:
        arch, fits, note = _find_arch(tensors, names, file)
        notes.append(note)
        spec, net = get_spec(arch), None
    else:
        spec = get_spec(arch)
        with seeded_init(0):
            net = _built(spec, tensors, file)
        fits = _fits_of(spec, net, tensors, file)
    fit, more = choose_weights(fits, which, file)
    notes += more
    with seeded_init(0):
        net = net or _built(spec, tensors, file)
        if heads := spec.head_paths(net):
            with warnings.catch_warnings():  # torch warns of a layer of no outputs
                warnings.simplefilter("ignore", UserWarning)
                replace_heads(net, heads, fit.classes)
            for head in classifiers(net, heads, spec.name):
                if head.bias is None and any(
                    f"{path}.bias" in fit.state for path in heads
                ):
                    head.bias = nn.Parameter(head.weight.new_zeros(fit.classes))
    _refuse_values(fit, net, file)
    # MNASNet asks for the version of its weights, which wrappers and safetensors lose; all
    # versions have the same weights at width 1.
    named = OrderedDict(fit.state)
    named._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]
    # Only num_batches_tracked and the head can be missing.
    net.load_state_dict(named, strict=False)
    left = _left_out(tensors, fit, fits)
    return Filled(net, spec, fit, (*notes, *left), _token(net, tensors, file))


def _refuse_values(fit: Fit, net: nn.Module, file: Path) -> None:
    """Refuse values that a network cannot compute with, or that are no plain numbers."""
    wanted = net.state_dict()
    wrong = {}
    for key, tensor in fit.state.items():
        if not wanted[key].is_floating_point():
            continue
        if tensor.dtype not in _NUMBERS:
            wrong[key] = (
                f"are {tensor.dtype}, which only their program can turn to numbers"
            )
        elif not _is_finite(tensor):
            wrong[key] = "are not finite"
        elif key.endswith("running_var") and bool((tensor < 0).any()):
            wrong[key] = "are variances below 0"
    if wrong:
        key, what = next(iter(wrong.items()))
        raise CheckpointError(
            f"{file} is of no use: values of {key} {what} ({len(wrong)} tensors in all)"
        )


def _is_finite(tensor: Tensor) -> bool:
    """Return whether all values are finite; a finite sum, which is quicker, says it."""
    quick = torch.isfinite(tensor.sum(dtype=torch.float32))
    return bool(quick) or bool(torch.isfinite(tensor).all())


def _find_arch(
    tensors: Mapping[str, Tensor], names: Iterable[str], file: Path
) -> tuple[str, list[Fit], str]:
    """Return the known architecture that fits, where, and how it was found.

    Those that the file names come first.
    """
    names = [*names]
    hinted = (name for name in names if name in ARCHITECTURES or TIMM_PREFIX in name)
    if named := _first_that_fits(tensors, hinted):
        return named
    found = find_fits(tensors, _sketches())
    fitting = {arch: fits for arch, fits in found.items() if _sound(fits)}
    if len(fitting) == 1:
        [[arch, fits]] = fitting.items()
        return arch, fits, f"its weights fit {arch} alone, which is taken"
    if named := _first_that_fits(tensors, (TIMM_PREFIX + name for name in names)):
        return named
    hint = "no known one fits" + _transformer(tensors)
    if fitting:
        hint = f"its weights fit {' and '.join(fitting)}"
    elif found:
        [arch, fits] = next(iter(found.items()))
        strange = fits[0].strange
        hint = f"{arch} would fit, but for {first_few(strange, _FEW)}{ignored(strange)}"
    raise CheckpointError(
        f"{file} does not say its architecture; {hint}. Pass `arch=NAME`"
    )


_WIDTHS = {
    192: "tiny",
    384: "small",
    768: "base",
    1024: "large",
    1280: "huge",
    1536: "giant",
}


def _transformer(tensors: Mapping[str, Tensor]) -> str:
    """Describe a vision transformer by its tensors, with the name that timm may have for it.

    Nothing is returned for other networks.
    """
    for _, translate in dialects(tensors):
        renamed = {key: tensor for key, (_, tensor) in translate(()).items()}
        stem = next((k for k in renamed if k.endswith("patch_embed.proj.weight")), None)
        if stem is None or renamed[stem].dim() != 4:
            continue
        prefix = stem.removesuffix("patch_embed.proj.weight")
        below = [key.removeprefix(prefix) for key in renamed if key.startswith(prefix)]
        depth = len({key.split(".")[1] for key in below if key.startswith("blocks.")})
        width, side = renamed[stem].shape[0], renamed[stem].shape[-1]
        if width not in _WIDTHS or not depth:
            continue
        name = f"vit_{_WIDTHS[width]}_patch{side}_"
        if "norm_pre.weight" in below:
            name += "clip_224"
        elif "blocks.0.ls1.gamma" in below:
            registers = {"reg_token", "register_tokens"} & {*below}
            name += "reg4_dinov2" if registers else "dinov2"
        else:
            name += "224"
        return (
            f"; it is a transformer of width {width} with {depth} blocks and patches of "
            f"{side} px, perhaps {TIMM_PREFIX}{name}"
        )
    return ""


def _first_that_fits(
    tensors: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[str, list[Fit], str] | None:
    """Return the first of the architectures that a file names which fits its weights."""
    for name in names:
        if _is_known(name):
            found = find_fits(tensors, {name: _blueprint(name)})
            if fits := _sound(found.get(name, [])):
                return name, fits, f"it names the architecture {name}, which fits"
    return None


def _built(spec: ArchSpec, tensors: Mapping[str, Tensor], file: Path) -> nn.Module:
    """Build a network of the channels and of the side of images that a file is for."""
    # Code of a user's own may need the values that it draws.
    undrawn = spec.name in ARCHITECTURES or spec.name.startswith(TIMM_PREFIX)
    with UndrawnParameters() if undrawn else nullcontext():
        net = spec.build(_BUILD_CLASSES)
    if channels_in(net, tensors) == 1:
        set_channels(net, 1)
    if side := our_header(file).get("image_size"):
        set_side(net, int(side))
    if token := _token(net, tensors, file):
        set_token(net, token)
    return net


def _token(net: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> str | None:
    return our_header(file).get("token") or token_of_keys(net, tensors)


def _is_known(name: str) -> bool:
    try:
        get_spec(name)
    except ConfigError:
        return False
    return True


def fitting_archs(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the registered architectures that fit somewhere among tensors of a file.

    The number of classes is left open. Networks whose stages are in the file are built
    without memory (meta device).
    """
    found = find_fits(tensors, _sketches())
    return [arch for arch, fits in found.items() if _sound(fits)]


@cache
def _sketches() -> dict[str, Sketch]:
    """Return the sketch of each known architecture: its stages have to be in a file."""
    sketches = {}
    for arch in ARCHITECTURES:
        stages = get_spec(arch).stages
        paths = [stage.name for stage in stages] if isinstance(stages, tuple) else []
        steps = {
            step for path in paths for step in path.split(".") if not step.isdigit()
        }
        sketches[arch] = Sketch(frozenset(steps), partial(_blueprint, arch))
    return sketches


@cache
def _blueprint(arch: str) -> Blueprint:
    spec = get_spec(arch)
    with torch.device("meta"):
        net = spec.build(_BUILD_CLASSES)
    return Blueprint.of(net.state_dict(), spec.head_paths(net))


def _sound(fits: Iterable[Fit]) -> list[Fit]:
    return [fit for fit in fits if not fit.strange]


def _fits_of(
    spec: ArchSpec, net: nn.Module, tensors: Mapping[str, Tensor], file: Path
) -> list[Fit]:
    """Return the places where a stated architecture fits."""
    blueprint = Blueprint.of(net.state_dict(), spec.head_paths(net))
    fits = find_fits(tensors, {spec.name: blueprint}).get(spec.name, [])
    if not fits and type(net).__module__.startswith("timm."):
        fits = _as_timm_converts(net, tensors, blueprint)
    fits = fits or fit_by_order(tensors, blueprint)
    if _sound(fits):
        return fits
    problems = [unexpected(fits[0])] if fits else misfit(tensors, blueprint)
    other = [arch for arch in fitting_archs(tensors) if arch != spec.name]
    hint = f" They fit {' and '.join(other)}: pass that as arch." if other else ""
    raise CheckpointError(
        f"the weights in {file} are not those of {spec.name}: {'; '.join(problems)}.{hint}"
    )


def _as_timm_converts(
    net: nn.Module, tensors: Mapping[str, Tensor], blueprint: Blueprint
) -> list[Fit]:
    """Let timm translate the keys of a network's authors, as its own loading does."""
    convert = getattr(
        sys.modules[type(net).__module__],
        "checkpoint_filter_fn",
        lambda state, _: state,
    )
    for _, translate in dialects(tensors):
        renamed = translate(blueprint.shapes)
        for prefix in sorted(
            {key.rpartition("patch_embed")[0] for key in renamed} | {""}
        ):
            below = {
                key.removeprefix(prefix): tensor
                for key, (_, tensor) in renamed.items()
                if key.startswith(prefix)
            }
            old = (path for key, (path, _) in renamed.items() if key.startswith(prefix))
            used = frozenset(part for path in old for part in path.split(JOIN))
            try:
                converted = convert(below, net)
            except Exception:  # it is written for the files of its authors alone
                continue
            found = find_fits(converted, {"": blueprint}).get("", [])
            if found:
                return [
                    replace(fit, prefix=prefix, dialect="its authors", used=used)
                    for fit in found
                ]
    return []


def _left_out(
    tensors: Mapping[str, Tensor], fit: Fit, fits: Sequence[Fit]
) -> list[str]:
    """Say which weights of a file were left out, and what was translated."""
    notes = []
    if fit.dialect == BY_ORDER:
        notes.append(
            "its layers have other names and were matched by their order and shapes alone: "
            "check its accuracy"
        )
    elif fit.dialect:
        notes.append(f"its layers have names of {fit.dialect}, which were translated")
    if not fit.classes:
        left = "its head is no classifier and was left out"
        what = left if fit.projection else "it has no classifier"
        notes.append(f"{what}: it serves as a source of features and of transfer alone")
    taken = frozenset[str]().union(*(each.used for each in fits))
    rest = [
        path
        for path, tensor in tensors.items()
        if path not in taken
        and tensor.numel() > 4  # statistics, counters and precisions
    ]
    if rest:
        groups = sorted({path.rpartition(".")[0] or path for path in rest})
        notes.append(
            f"what is no part of the network was left out: {first_few(groups, _FEW)}"
        )
    return notes
