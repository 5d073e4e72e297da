"""What people type wrongly, or bring: `fastadv-detect train` names it, or counts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_files import (
    edit_coco,
    voc_object,
    write_coco,
    write_masks,
    write_voc_image,
    write_voc_list,
)
from PIL import Image

from fastadv.cli import detect

SMALL = [
    *("--min-size", "64", "--max-size", "96", "--width", "8", "--sampled-boxes", "8"),
    *("--proposals", "20", "--workers", "0", "--device", "cpu"),
    *("--batch-size", "2", "--epochs", "1"),
]
CROWD = {"size": [80, 96], "counts": [0, 160, 80 * 96 - 160]}
OWN = """
from torch import nn


def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))
"""


def run(
    source: Path,
    data: Path,
    out: Path,
    *words: str,
    dry: bool = True,
    sized: bool = True,
) -> int:
    argv = ["train", "--source", str(source), "--data", str(data), "--out", str(out)]
    return detect.main(
        [*argv, *(SMALL if sized else []), *(["--dry-run"] if dry else []), *words]
    )


def annotated(root: Path, **changes: Any) -> None:
    """Change the first annotation of the images to train on."""
    known = edit_coco(root)
    known["annotations"][0] |= changes
    edit_coco(root, annotations=known["annotations"])


def no_categories(root: Path) -> None:
    for split in ("train2017", "val2017"):
        edit_coco(root, split, categories=[], annotations=[])


def without_image(root: Path) -> None:
    (root / "train2017" / "000000000001.jpg").unlink()


def without_objects(root: Path) -> None:
    known = edit_coco(root)
    kept = [a for a in known["annotations"] if a["image_id"] != 100]
    edit_coco(root, annotations=kept)


REFUSED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "zero classes": (no_categories, [], "has no classes"),
    "no segmentation, masks": (
        lambda root: annotated(root, segmentation=[]),
        ["--masks"],
        "objects have no segmentation (annotations 1), so there are no masks",
    ),
    "an unknown category": (
        lambda root: annotated(root, category_id=0),
        [],
        "is of category 0, which its list of categories does not hold",
    ),
    "images below the smallest anchor": (
        lambda root: None,
        ["--min-size", "15"],
        "--min-size 15 is below the smallest anchor of 16 pixels",
    ),
    "too many frozen stages": (
        lambda root: None,
        ["--frozen-stages", "9"],
        "is more than the 3 stages of resnet8_cifar",
    ),
}
COUNTED: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "no segmentation, boxes": (
        lambda root: annotated(root, segmentation=[]), [], "6 training images"
    ),
    "a crowd": (
        lambda root: annotated(root, iscrowd=1, segmentation=CROWD),
        ["--masks"],
        "training images",
    ),
    "an image without objects": (without_objects, [], "(1 without objects left out)"),
    "a box of no size": (
        lambda root: annotated(root, bbox=[10, 20, 0, 5]),
        [],
        "1 x a box of no size, left out: train2017/000000000000.jpg object 1",
    ),
    "a box outside": (
        lambda root: annotated(root, bbox=[500, 20, 9, 5]),
        [],
        "1 x a box outside of the image, left out: train2017/000000000000.jpg object 1",
    ),
    "a missing file": (
        without_image,
        [],
        "1 x a missing image file, left out: 000000000001.jpg",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_and_named(
    name: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, message = REFUSED[name]
    root = write_coco(tmp_path / "coco")
    spoil(root)
    assert run(classifier, root, tmp_path / "run", *words) in (1, 2)
    found = capsys.readouterr().err
    assert " ".join(message.split()) in " ".join(found.split())
    assert "Traceback" not in found
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", COUNTED)
def test_what_people_meet_is_taken_and_counted(
    name: str, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words, message = COUNTED[name]
    root = write_coco(tmp_path / "coco")
    spoil(root)
    assert run(classifier, root, tmp_path / "run", *words) == 0
    found = capsys.readouterr()
    assert message in " ".join((found.out + found.err).split())


def test_masks_of_another_size_end_a_run_with_their_name(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_coco(tmp_path / "coco", images=2)
    other = {"size": [96, 80], "counts": [0, 160, 80 * 96 - 160]}
    annotated(root, segmentation=other)
    assert run(classifier, root, tmp_path / "run", "--masks", dry=False) == 1
    found = capsys.readouterr().err
    assert "coco:train2017/000000000000.jpg: a mask is for an image of 80 x 96" in found
    folder = write_masks(tmp_path / "masks")
    Image.fromarray(np.zeros((96, 80), np.uint8)).save(folder / "masks" / "3.png")
    assert run(classifier, folder, tmp_path / "run2", "--masks") == 1
    assert "3.png is 80 x 96 pixels, its image 96 x 80" in capsys.readouterr().err


def test_voc_as_other_tools_write_it(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Float coordinates, names with spaces, no difficult, pose, truncated; a lost file."""
    top = tmp_path / "VOC2007"
    plant = voc_object("potted plant", ("10.5", "5.0", "40.25", "30"))
    for stem in "ab":
        write_voc_image(top, stem, [plant])
    write_voc_list(top, "train", ["a", "lost"])
    write_voc_list(top, "val", ["b"])
    assert run(classifier, tmp_path, tmp_path / "run") == 0
    found = capsys.readouterr()
    text = " ".join((found.out + found.err).split())
    assert "1 training images, 1 test images, 1 classes" in text
    assert (
        "1 x a missing file of annotations, left out: VOC2007/Annotations/lost" in text
    )
    assert run(classifier, tmp_path, tmp_path / "run", "--masks") == 1
    assert "has segmented objects" in capsys.readouterr().err
    write_voc_image(top, "a", [voc_object("dog", (0, 0, 9, 9))])
    assert run(classifier, tmp_path, tmp_path / "run") == 1
    assert "use --origin 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm/vit_tiny_patch16_224", "are all of stride 16, so there is no pyramid"),
        ("own_net:flat", "the stages of"),
    ],
)
def test_a_source_without_stages_is_refused(
    arch: str,
    message: str,
    rectangles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if arch.startswith("timm/"):
        pytest.importorskip("timm")
    monkeypatch.chdir(tmp_path)
    Path("own_net.py").write_text(OWN)
    argv = ["train", "--arch", arch, "--data", str(rectangles), "--dry-run", *SMALL]
    assert detect.main(argv) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
