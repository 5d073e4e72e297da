"""fastadv-models: which networks there are, what a checkpoint is, and other formats."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from fastadv.cli import common
from fastadv.errors import EXIT_OK, ConfigError, unknown_name
from fastadv.models.architecture_names import EXPORT_FORMATS

PROG = "fastadv-models"
_SUFFIXES = {
    "safetensors": (".safetensors",),
    "torchvision": (".pth", ".pt"),
    "timm": ("",),
    "detectron2": (".pkl",),
    "robustbench": (".pt", ".pth"),
    "onnx": (".onnx",),
}

Json = Annotated[bool, arg(help="Print one JSON object.")]
Download = Annotated[bool, arg(help="Fetch a named source that is not here.")]
Arch = Annotated[str | None, arg(help="Architecture, where nothing else says it.")]


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List architectures, and torchvision's weights for them, on this machine or not."""

    pattern: Positional[str] = "*"
    """Names with wildcards: 'resnet*'; 'timm/resnet*' lists timm's."""
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ShowCommand:
    """Say what a source is: architecture, classes, input, training, hashes.

    A source is a run directory, a checkpoint file, torchvision:resnet18/IMAGENET1K_V1,
    timm:NAME, hf:ORG/NAME (or hf:ORG/NAME/FILE, hf:ORG/NAME@REVISION) or package:NAME.
    What it does not say can follow: ,arch=NAME ,input=imagenet|half|unit|caffe
    ,norm=linf ,eps=4/255 ,name=NAME. Nothing is downloaded without --download.
    """

    source: Positional[str]
    """What to look at."""
    arch: Arch = None
    download: Download = False
    json: Json = False


@dataclass(frozen=True, kw_only=True)
class ConvertCommand:
    """Write a source as another program reads it, with a JSON card beside it."""

    source: Positional[str]
    """What to convert; see fastadv-models show --help."""
    out: Positional[Path]
    """File to write; for timm a folder."""
    to: Annotated[str, arg(metavar="{" + ",".join(EXPORT_FORMATS) + "}")]
    """The format."""
    arch: Arch = None
    resolution: int | None = None
    """Side of the images in pixels that timm and onnx state; default the source's."""
    force: bool = False
    """Replace what is at OUT, and the files that go with it."""
    download: Download = False
    json: Json = False

    def __post_init__(self) -> None:
        if self.to not in EXPORT_FORMATS:
            raise ConfigError(unknown_name("--to", self.to, EXPORT_FORMATS))
        wanted = _SUFFIXES[self.to]
        if self.out.suffix not in wanted and wanted != ("",):
            raise ConfigError(
                f"{self.out} must end in {' or '.join(wanted)} for --to {self.to}, by "
                "which its readers know it"
            )
        if self.resolution is not None and self.resolution < 1:
            raise ConfigError(f"--resolution {self.resolution} must be at least 1")


def _list(command: ListCommand) -> int:
    from fastadv.models import get_spec, list_models
    from fastadv.models.architecture_names import SALMAN2020, TIMM_PREFIX
    from fastadv.models.weights import torchvision_files
    from fastadv.text_tables import text_table

    names = list_models(command.pattern)
    if not names:
        if not set(command.pattern) & set("*?["):
            raise ConfigError(
                unknown_name("architecture", command.pattern, list_models("*"))
            )
        raise ConfigError(
            f"no architecture matches {command.pattern!r}; try '*', or 'timm/*' for timm's"
        )
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        if name.startswith(TIMM_PREFIX):
            rows[name] = {}
            continue
        rows[name] = {
            "image_size": get_spec(name).image_size,
            "salman2020": name in SALMAN2020,
            "weights": {
                source: str(file) if file.is_file() else None
                for source, file in torchvision_files(name).items()
            },
        }
    if command.json:
        print(json_module.dumps(rows))
        return EXIT_OK
    if command.pattern.startswith(TIMM_PREFIX):
        print("\n".join(names))
        return EXIT_OK
    cells = [
        [
            name,
            row["image_size"],
            "yes" if row["salman2020"] else "",
            " ".join(f"{s}{' (here)' if f else ''}" for s, f in row["weights"].items()),
        ]
        for name, row in rows.items()
    ]
    print(text_table(["architecture", "px", "salman2020", "weights"], cells))
    return EXIT_OK


def describe(command: ShowCommand) -> dict[str, Any]:
    """Everything `fastadv-models show` prints, as plain values."""
    from fastadv.errors import CheckpointError
    from fastadv.models import read_metadata
    from fastadv.models.checkpoint import decimals, state_hash
    from fastadv.models.source import open_source

    source = open_source(command.source, arch=command.arch, download=command.download)
    model = source.load()
    try:
        metadata = read_metadata(source.file)["user"]
    except CheckpointError:
        metadata = {}
    return {
        "name": source.name,
        "file": str(source.file),
        "file_sha256": source.file_digest,
        "arch": source.arch,
        "num_classes": model.num_classes,
        "parameters": sum(p.numel() for p in model.net.parameters()),
        "embedding_dim": model.embedding_dim,
        "blocks": len(model.blocks()),
        "mean": decimals(model.mean),
        "std": decimals(model.std),
        "resolution": source.resolution,
        "norm": source.norm,
        "eps": source.eps,
        "classes": list(source.classes),
        "state_hash": state_hash(model),
        "metadata": metadata,
    }


def _show(command: ShowCommand) -> int:
    from fastadv.threat import ThreatModel

    about = describe(command)
    if command.json:
        print(json_module.dumps(about, default=str))
        return EXIT_OK
    trained = "unknown"
    if about["eps"] is not None:
        threat = ThreatModel(about["norm"] or "l2", about["eps"])
        trained = f"adversarial, {threat}" if about["eps"] else "standard"
    lines = {
        "file": about["file"],
        "sha256": about["file_sha256"],
        "architecture": f"{about['arch']}, {about['parameters'] / 1e6:.2f} M parameters",
        "classes": about["num_classes"],
        "embedding": f"{about['embedding_dim']} wide, {about['blocks']} blocks before it",
        "input": f"{about['resolution']} px, mean {_few(about['mean'])}, "
        f"std {_few(about['std'])}",
        "training": trained,
        "state hash": about["state_hash"],
    }
    print(about["name"])
    for name, value in lines.items():
        print(f"  {name:13} {value}")
    for name in ("epoch", "clean_acc", "robust_acc", "val_clean_acc", "val_robust_acc"):
        if name in about["metadata"]:
            print(f"  {name:13} {about['metadata'][name]}")
    return EXIT_OK


def _few(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _convert(command: ConvertCommand) -> int:
    from fastadv.errors import CheckpointError
    from fastadv.models import read_metadata
    from fastadv.models.export import export_model, files_beside
    from fastadv.models.source import open_source

    for path in (command.out, *files_beside(command.out, command.to)):
        if path.exists() and not command.force:
            raise ConfigError(f"{path} exists; add --force to replace it")
    source = open_source(command.source, arch=command.arch, download=command.download)
    try:
        about = read_metadata(source.file)["user"]
    except CheckpointError:
        about = {}
    config = about.get("config", {}) | {"norm": source.norm, "eps": source.eps}
    written = export_model(
        source.load(),
        command.out,
        command.to,
        resolution=command.resolution or source.resolution,
        about=about
        | {
            "config": config,
            "classes": list(source.classes),
            "converted_from": {"name": source.name, "sha256": source.file_digest},
        },
    )
    if command.json:
        print(json_module.dumps({"files": [str(path) for path in written]}))
        return EXIT_OK
    for path in written:
        print(path)
    print(EXPORT_FORMATS[command.to])
    return EXIT_OK


_COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int]]] = {
    "list": (ListCommand, _list),
    "show": (ShowCommand, _show),
    "convert": (ConvertCommand, _convert),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return common.run_commands(PROG, __doc__ or "", _COMMANDS, argv)


if __name__ == "__main__":
    raise SystemExit(main())
