"""Detectors as ONNX files, for programs without PyTorch."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastadv.detection.eval_config import DetectExportConfig
from fastadv.detection.judging import evaluating
from fastadv.detection.saving import open_detector
from fastadv.errors import ConfigError
from fastadv.files import atomic

# The newest that PyTorch's exporter by tracing writes the operators of detectors in.
_OPSET = 16


def export_detector(
    detector: nn.Module,
    path: str | os.PathLike[str],
    size: tuple[int, int] = (480, 640),
    *,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a detector as an ONNX file of one image, of any size.

    The input `image` is float32 [3, H, W], RGB in [0, 1]; it is normalised and resized
    inside. The outputs are `boxes` [D, 4] in pixels of the image, `labels` [D], `scores`
    [D] and, of Mask R-CNN, `masks` [D, 1, H, W] in [0, 1].

    It is traced: PyTorch's newer exporter (torch 2.15) cannot export the detectors of
    torchvision, whose number of boxes depends on the pixels.

    Args:
        detector: A Faster or Mask R-CNN of torchvision, in any mode, which is restored.
        path: The file to write.
        size: Height and width in pixels of the image that it is traced with.
        facts: Values that JSON can hold, which are written into the file as its metadata,
            such as the names of the classes.

    Returns:
        The path of the file.

    Raises:
        ConfigError: The package `onnx` is missing.
        OutputError: The file cannot be written; what was there is unchanged.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "ONNX files need the package onnx, which is not installed; run: pip install "
            "'fastadv[onnx]'"
        ) from error
    device = next(detector.parameters()).device
    # Noise, since an image without detections would leave parts of the network untraced.
    noise = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    names = ["boxes", "labels", "scores"]
    sizes = {"image": {1: "height", 2: "width"}} | {
        name: {0: "detections"} for name in names
    }
    if getattr(detector.roi_heads, "mask_head", None) is not None:
        names.append("masks")
        sizes["masks"] = {0: "detections", 2: "height", 3: "width"}
    target = Path(path)
    with evaluating(detector), atomic(target) as begun, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of shapes that it computes
        torch.onnx.export(
            detector,
            ([noise.to(device)],),
            begun,
            input_names=["image"],
            output_names=names,
            dynamic_axes=sizes,
            opset_version=_OPSET,
            dynamo=False,
        )
        written = onnx.load(begun)
        for key, value in (facts or {}).items():
            written.metadata_props.add(key=key, value=json.dumps(value))
        onnx.save(written, begun)
    return target


def export_detector_file(config: DetectExportConfig) -> Path:
    """Write the detector that a configuration names as an ONNX file; return its path.

    Raises:
        CheckpointError: The detector cannot be read.
        ConfigError: The file is there, or the package `onnx` is missing.
        OutputError: The file cannot be written.
    """
    path = Path(config.out).expanduser()
    if path.exists() and not config.force:
        raise ConfigError(f"{path} exists; add `force` to replace it")
    opened = open_detector(config.checkpoint)
    facts = {
        "classes": opened.facts.classes,
        "category_ids": opened.facts.category_ids,
        "arch": opened.facts.arch,
    }
    return export_detector(opened.detector, path, config.size, facts=facts)
