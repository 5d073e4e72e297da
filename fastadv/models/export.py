"""Export of models to torchvision, timm, Detectron2, RobustBench, ONNX and torch.export.

Each format is one function from a model to files; `export_model` adds the card, a JSON
file that says what the format itself cannot: normalisation, training, origin.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch import Tensor, nn

from fastadv import __version__
from fastadv.errors import ConfigError, unknown_name
from fastadv.files import file_sha256, write_atomic
from fastadv.models import timm_models
from fastadv.models.architecture_names import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MODEL_FILE,
    TIMM_PREFIX,
)
from fastadv.models.checkpoint import cpu_state, decimals, save_model, state_hash
from fastadv.models.dialects import DETECTRON2_CONFIGS, TIMM_TWINS, to_detectron2
from fastadv.models.normalized import NormalizedModel, as_model
from fastadv.models.source import Source
from fastadv.preparation import Preparation
from fastadv.threat import training_kind

log = logging.getLogger(__name__)

ONNX_OPSET = 18

About = dict[str, Any]


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    to: str,
    *,
    resolution: int = 224,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a model as another program reads it, and a JSON card beside it.

    Args:
        model: The model, or a network of your own that takes [0, 1] images, in any mode; it
            is written for evaluation.
        path: The file to write; a folder for timm.
        to: One of `EXPORT_FORMATS`.
        resolution: Side in pixels of the images the model is for; the timm format and
            ONNX state it.
        about: Anything JSON can hold. It goes into the card, and as the metadata of
            `save_model` into the files that have a place for it (safetensors, timm).

    Returns:
        The files written; the card is the last.

    Raises:
        ConfigError: The format is unknown, a package that it needs is missing, or the
            other program has no such architecture; the message names those it has.
        OutputError: A file cannot be written; what was there is unchanged.
    """
    if to not in _WRITERS:
        raise ConfigError(unknown_name("format", to, _WRITERS))
    model = as_model(model)
    target = Path(path)
    metadata = {**(about or {}), "resolution": resolution}
    written = _WRITERS[to](model, target, metadata)
    card = _card_path(target, to)
    content = _card(model, to) | {
        "files": {file.name: file_sha256(file) for file in written},
        "about": metadata,
    }
    if (how := _stated_preparation(metadata)) is not None:
        content["preparation"] = str(how)
    write_atomic(card, json.dumps(content, indent=2).encode() + b"\n")
    return [*written, card]


def export_source(
    source: Source, path: Path, to: str, *, resolution: int | None = None
) -> list[Path]:
    """Write a source as another program reads it; see `export_model`.

    Args:
        source: The model with the facts known of it, which the card repeats.
        path: The file to write; a folder for timm.
        to: One of `EXPORT_FORMATS`.
        resolution: Side of the images in pixels; None stands for that of the source.
    """
    about = source.metadata()
    config = about.get("config", {}) | {"norm": source.norm, "eps": source.eps}
    origin = {"name": source.name, "sha256": source.file_digest}
    about |= {"config": config, "classes": [*source.classes], "converted_from": origin}
    if source.kind != training_kind(None, source.eps):
        about["kind"] = source.kind
    side = resolution or source.resolution
    if source.preparation is not None:
        about["preparation"] = asdict(source.preparation.at(side))
    return export_model(source.load(), path, to, resolution=side, about=about)


def files_beside(path: Path, to: str) -> list[Path]:
    """Return the files that `export_model` writes beside the given file (timm: folder)."""
    beside = [path.with_suffix(".yaml")] if to == "detectron2" else []
    return beside if to == "timm" else [*beside, _card_path(path, to)]


def _stated_preparation(about: About) -> Preparation | None:
    """Return how images are to be prepared, if that is known."""
    stated = about.get("preparation")
    return None if stated is None else Preparation(**stated)


def _card_path(path: Path, to: str) -> Path:
    """Return the path of the card, named after the whole file name with its suffix."""
    return path / "card.json" if to == "timm" else path.with_name(path.name + ".json")


def _card(model: NormalizedModel, to: str) -> dict[str, Any]:
    """Return the facts that a reader of the weights needs, as values JSON can hold."""
    return {
        "format": to,
        "arch": model.arch,
        "num_classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "input": _INPUTS.get(to, "RGB images in [0, 1], minus mean, divided by std"),
        "mean": decimals(model.mean),
        "std": decimals(model.std),
        "state_hash": state_hash(model),
        "fastadv": __version__,
    }


_INSIDE = "RGB images in [0, 1]; mean and std are applied inside"
_INPUTS = {
    "onnx": _INSIDE,
    "torch_export": _INSIDE,
    "robustbench": _INSIDE,
    "detectron2": "RGB images in 0..255: INPUT.FORMAT RGB (Detectron2's default is BGR), "
    "PIXEL_MEAN and PIXEL_STD as in the .yaml file",
}


class Normalize(nn.Module):
    """A layer that computes `(x - mean) / std` of images [N,C,H,W] in [0, 1].

    Args:
        mean: Per-channel mean, float32 [C].
        std: Per-channel standard deviation, float32 [C].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone().view(1, -1, 1, 1))
        self.register_buffer("std", std.detach().clone().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images [N,C,H,W] in [0, 1]."""
        return (x - self.mean) / self.std


def plain_module(model: NormalizedModel) -> nn.Sequential:
    """Return a plain module of [0, 1] images, as RobustBench's `load_model` does.

    Its first layer normalises. It shares the weights of `model`, is in evaluation mode,
    and has the state-dict keys of RobustBench's models (`normalize.mean`, `model.<key>`).
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["normalize"] = Normalize(model.mean, model.std)
    layers["model"] = model.net
    return nn.Sequential(layers).eval()


def _save(path: Path, state: dict[str, Tensor]) -> list[Path]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())
    return [path]


def _to_safetensors(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    save_model(model, path, about)
    return [path]


def _to_torchvision(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    _need_twin(model, "torchvision", torchvision.models.list_models())
    stated = (*decimals(model.mean), *decimals(model.std))
    if stated != (*IMAGENET_MEAN, *IMAGENET_STD):
        log.warning(
            "a torchvision state dict has no place for normalisation, and this model's is "
            "not ImageNet's; give the reader mean and std of %s",
            _card_path(path, "torchvision"),
        )
    return _save(path, cpu_state(model.net.state_dict()))


def _to_robustbench(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    return _save(path, cpu_state(plain_module(model).state_dict()))


def _to_timm(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    arch = model.arch.removeprefix(TIMM_PREFIX)
    if arch == model.arch:
        _need_twin(model, "timm", TIMM_TWINS)
    how = _stated_preparation(about)
    config = {
        "architecture": arch,
        "num_classes": model.num_classes,
        "num_features": model.embedding_dim,
        "pretrained_cfg": {
            "input_size": [3, about["resolution"], about["resolution"]],
            "mean": decimals(model.mean),
            "std": decimals(model.std),
            "num_classes": model.num_classes,
            **(timm_models.preparation_config(how) if how else {}),
        },
    }
    # The configuration first: a folder that has weights is then complete.
    write_atomic(path / "config.json", json.dumps(config, indent=2).encode())
    save_model(model, path / MODEL_FILE, about)
    return [path / "config.json", path / MODEL_FILE]


def _to_detectron2(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    _need_twin(model, "detectron2", DETECTRON2_CONFIGS)
    state = to_detectron2(cpu_state(model.net.state_dict()))
    content = {
        "model": {key: value.numpy() for key, value in state.items()},
        "__author__": "fastadv",
        "matching_heuristics": True,
    }
    config = {
        "MODEL": {
            "WEIGHTS": str(path),
            "PIXEL_MEAN": [round(255 * v, 6) for v in decimals(model.mean)],
            "PIXEL_STD": [round(255 * v, 6) for v in decimals(model.std)],
            # torchvision strides in the 3x3 convolution, Detectron2's own weights in the 1x1.
            "RESNETS": {**DETECTRON2_CONFIGS[model.arch], "STRIDE_IN_1X1": False},
        },
        "INPUT": {"FORMAT": "RGB"},
    }
    side = path.with_suffix(".yaml")
    header = (
        "# Merge into a Detectron2 config. Its default FORMAT is BGR: keep RGB.\n"
        "# With the default MODEL.BACKBONE.FREEZE_AT of 2, stem and res2 keep these\n"
        "# weights: initialisations are then compared with these stages untrained. 0\n"
        "# trains everything, as training from scratch must.\n"
    )
    write_atomic(side, (header + yaml.safe_dump(config, sort_keys=False)).encode())
    # Detectron2 reads a plain pickle; writing one runs nothing.
    write_atomic(path, pickle.dumps(content, protocol=4))
    return [path, side]


def _to_onnx(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"the onnx format needs the package {error.name}, which is not installed; "
            "run: pip install 'fastadv[onnx]'"
        ) from error
    with _evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        exported = _exported(model, about["resolution"])
        program: Any = torch.onnx.export(
            exported,
            input_names=["images"],
            output_names=["logits"],
            opset_version=ONNX_OPSET,
            dynamo=True,
            verbose=False,
        )
    write_atomic(path, program.model_proto.SerializeToString())
    return [path]


def _to_torch_export(model: NormalizedModel, path: Path, about: About) -> list[Path]:
    buffer = io.BytesIO()
    with _evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(_exported(model, about["resolution"]), buffer)
    write_atomic(path, buffer.getvalue())
    return [path]


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _exported(model: NormalizedModel, side: int) -> torch.export.ExportedProgram:
    """Return the program of a network for any number of images of [0, 1].

    Height and width are free where the network allows it: where the program can be made,
    and computes for images of another size what the network does. Else they are `side`,
    which is logged.
    """
    other = torch.rand(
        3, len(model.mean), side + 64, side + 32, device=model.mean.device
    )
    batch = torch.export.Dim("batch", min=1)
    try:
        with torch.no_grad():
            expected = model(other)
        free = torch.export.export(
            model,
            (other[:2, :, : side + 32, :side].contiguous(),),
            dynamic_shapes=(
                {0: batch, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},
            ),
        )
        with torch.no_grad():
            torch.testing.assert_close(
                free.module()(other), expected, rtol=1e-3, atol=1e-3
            )
        return free
    except Exception as error:  # what the network's own code raises at that size
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        log.info("height and width are fixed to %d pixels: %s", side, reason)
    return torch.export.export(
        model, (other[:2, :, :side, :side].contiguous(),), dynamic_shapes=({0: batch},)
    )


def _need_twin(model: NormalizedModel, library: str, known: Collection[str]) -> None:
    if model.arch not in known:
        raise ConfigError(
            f"{library} has no network with the weights of {model.arch}; it has those of "
            f"{', '.join(sorted({*known} & {*ARCHITECTURES}))}. Use safetensors, "
            "robustbench or onnx"
        )


_WRITERS: dict[str, Callable[[NormalizedModel, Path, About], list[Path]]] = {
    "safetensors": _to_safetensors,
    "torchvision": _to_torchvision,
    "timm": _to_timm,
    "detectron2": _to_detectron2,
    "robustbench": _to_robustbench,
    "onnx": _to_onnx,
    "torch_export": _to_torch_export,
}
