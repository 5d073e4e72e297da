"""Detection sets: three layouts, and what people's annotations look like."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detection_files import (
    edit_coco,
    voc_object,
    write_coco,
    write_masks,
    write_voc_image,
    write_voc_list,
    write_voc_shapes,
)
from PIL import Image
from shared_data import shared

from fastadv.data.decoding import BadImage
from fastadv.detection.opening import open_detection
from fastadv.detection.sets import MasksMissing
from fastadv.errors import DataError


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "set", images=3)


def annotation(**changes: Any) -> dict[str, Any]:
    plain = {"id": 1, "image_id": 100, "category_id": 3, "bbox": [10, 20, 30, 40]}
    plain |= {"area": 1200, "segmentation": [[10, 20, 40, 20, 40, 60, 10, 60]]}
    return plain | {"iscrowd": 0} | changes


# ---- COCO ----


def test_coco_targets_are_those_of_the_file(coco: Path) -> None:
    splits = open_detection(coco)
    assert (splits.layout, splits.train.has_masks) == ("coco", True)
    # Gaps in the ids of categories: labels are 1 and 2, in the order of the ids.
    assert splits.train.classes == ["car", "tooth brush"]
    assert splits.train.category_ids == [3, 90]
    known = edit_coco(coco)
    for index, listed in enumerate(known["images"]):
        image, target = splits.train[index]
        own = [a for a in known["annotations"] if a["image_id"] == listed["id"]]
        assert image.shape == (3, 80, 96)
        assert image.dtype == torch.uint8
        assert target["image_id"] == listed["id"]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in own)]
        assert target["boxes"].tolist() == boxes
        labels = [{3: 1, 90: 2}[a["category_id"]] for a in own]
        assert target["labels"].tolist() == labels
        for (x1, y1, x2, y2), mask in zip(boxes, target["masks"], strict=True):
            assert mask[y1:y2, x1:x2].all()
            assert int(mask.sum()) == (x2 - x1) * (y2 - y1)


def test_a_crowd_stays_marked_and_its_run_lengths_are_drawn(coco: Path) -> None:
    # 80 x 96 in columns: the first two columns.
    crowd = {"size": [80, 96], "counts": [0, 160, 80 * 96 - 160]}
    annotations = [annotation(), annotation(id=2, iscrowd=1, segmentation=crowd)]
    edit_coco(coco, annotations=annotations)
    target = open_detection(coco, masks=True).train.target(0)
    assert target["iscrowd"].tolist() == [0, 1]
    assert target["masks"][1].sum(0).tolist() == [80, 80] + [0] * 94


def test_images_without_objects_stay_and_can_be_left_out(coco: Path) -> None:
    crowd = annotation(id=2, image_id=101, iscrowd=1, segmentation=None)
    edit_coco(coco, annotations=[annotation(), crowd])
    train = open_detection(coco).train
    assert len(train) == 3
    empty = train.target(2)
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 80, 96)
    assert [each.image_id for each in train.without_empty().annotated] == [100]


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 20, 0, 5], "a box of no size, left out"),
        ([10, 20, 5, -3], "a box of no size, left out"),
        ([200, 20, 5, 5], "a box outside of the image, left out"),
        ([10, float("nan"), 5, 5], "a box that is not four numbers, left out"),
        ([10, 20, 5], "a box that is not four numbers, left out"),
        (None, "a box that is not four numbers, left out"),
    ],
)
def test_impossible_boxes_are_counted_and_named(
    coco: Path, box: object, reason: str
) -> None:
    edit_coco(coco, annotations=[annotation(bbox=box), annotation(id=2)])
    train = open_detection(coco).train
    assert train.target(0)["boxes"].tolist() == [[10, 20, 40, 60]]
    assert train.target(0)["masks"].shape[0] == 1
    assert train.report.found == {reason: ["train2017/000000000000.jpg object 1"]}


def test_boxes_are_cut_off_at_the_border(coco: Path) -> None:
    rounded = annotation(id=2, bbox=[50, 40, 46.4, 40.3])
    edit_coco(coco, annotations=[annotation(bbox=[-10, 70, 20, 30]), rounded])
    train = open_detection(coco).train
    assert train.target(0)["boxes"].tolist() == [[0, 70, 10, 80], [50, 40, 96, 80]]
    assert train.report.counts() == {"a box that reached beyond the image, cut off": 1}


def test_objects_without_shapes_serve_boxes_and_not_masks(coco: Path) -> None:
    edit_coco(coco, annotations=[annotation(), annotation(id=7, segmentation=[])])
    assert not open_detection(coco).train.has_masks
    assert "masks" not in open_detection(coco).train.target(0)
    with pytest.raises(DataError, match=r"1 objects have no segmentation.* 7\)"):
        open_detection(coco, masks=True)


def test_missing_images_are_counted_and_named(coco: Path) -> None:
    (coco / "train2017" / "000000000001.jpg").unlink()
    train = open_detection(coco).train
    assert [each.image_id for each in train.annotated] == [100, 102]
    assert train.report.lines() == [
        "1 x a missing image file, left out: 000000000001.jpg"
    ]
    shutil.rmtree(coco / "val2017")
    with pytest.raises(DataError, match=r"none of its 3 images .* val2017/"):
        open_detection(coco)


def test_masks_of_another_size_are_refused(coco: Path) -> None:
    other = {"size": [96, 80], "counts": [0, 160, 80 * 96 - 160]}
    edit_coco(coco, annotations=[annotation(segmentation=other)])
    with pytest.raises(DataError, match=r"80 x 96 pixels, the image is 96 x 80"):
        open_detection(coco).train[0]


def test_images_of_another_size_than_annotated_are_bad(coco: Path) -> None:
    Image.new("RGB", (80, 96)).save(coco / "train2017" / "000000000000.jpg")
    with pytest.raises(BadImage, match=r"80 x 96 pixels, its annotations are for 96"):
        open_detection(coco).train[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"annotations": [annotation(category_id=4)]},
            "category 4, which its list of categories",
        ),
        ({"annotations": []}, "no image to train on has an object"),
        ({"categories": []}, "category 3, which its list of categories"),
        (
            {"categories": [{"id": 3, "name": "a"}] * 2},
            "two categories have the same id",
        ),
        ({"categories": [{"id": 3}]}, "no id or no name"),
        ({"annotations": None}, "needs lists named"),
        ({"annotations": [annotation(), 3]}, "is no object of JSON"),
        ({"images": [{"id": 1}]}, "no id or no file_name"),
    ],
)
def test_files_that_are_not_cocos_are_refused(
    coco: Path, changes: dict[str, Any], message: str
) -> None:
    edit_coco(coco, **changes)
    with pytest.raises(DataError, match=message):
        open_detection(coco)


def test_zero_classes_are_refused(coco: Path) -> None:
    for split in ("train2017", "val2017"):
        edit_coco(coco, split, categories=[], annotations=[])
    with pytest.raises(DataError, match="has no classes"):
        open_detection(coco)


def test_annotations_of_unknown_images_are_counted(coco: Path) -> None:
    edit_coco(coco, annotations=[annotation(), annotation(id=2, image_id=999)])
    counts = open_detection(coco).train.report.counts()
    assert counts == {"an annotation of an unknown image, left out": 1}


def test_roboflows_layout_and_a_zip_of_it(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "exported"
    for split, ours in (("train", "train2017"), ("valid", "val2017")):
        shutil.copytree(coco / ours, root / split)
        name = f"instances_{ours}.json"
        shutil.copy(
            coco / "annotations" / name, root / split / "_annotations.coco.json"
        )
    plain, moved = open_detection(coco), open_detection(root)
    packed = tmp_path / "exported.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in root.rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path))
    for index in range(3):
        expected, target = plain.test[index]
        for found in (
            moved.test,
            pickle.loads(pickle.dumps(open_detection(packed).test)),
        ):
            assert found[index][0].equal(expected)
            assert found[index][1]["boxes"].equal(target["boxes"])


# ---- VOC ----


def test_voc_counts_from_one_and_its_last_pixel_belongs_to_the_box(
    tmp_path: Path,
) -> None:
    top = tmp_path / "VOCdevkit" / "VOC2007"
    full = voc_object(
        "potted plant", (1, 1, 50, 40), difficult=0, pose="Left", truncated=1
    )
    bare = voc_object(" potted  plant ", ("10.4", "5.0", "20.6", "9"))
    write_voc_image(top, "a", [full, bare])
    hard = voc_object("cat", (2, 3, 4, 5), difficult=1)
    write_voc_image(top, "b", [hard, full])
    write_voc_list(top, "trainval", ["a", "b"])
    write_voc_list(top, "test", ["b", "lost"])
    splits = open_detection(tmp_path)
    assert splits.layout == "voc"
    assert splits.train.classes == ["cat", "potted plant"]
    target = splits.train.target(0)
    np.testing.assert_allclose(
        target["boxes"], [[0, 0, 50, 40], [9.4, 4, 20.6, 9]], rtol=1e-6
    )
    assert target["labels"].tolist() == [2, 2]
    assert "masks" not in target
    # Difficult objects train, and are ignored when a detector is judged.
    assert splits.train.target(1)["iscrowd"].tolist() == [0, 0]
    assert splits.test.target(0)["iscrowd"].tolist() == [1, 0]
    lost = "VOCdevkit/VOC2007/Annotations/lost.xml"
    assert splits.test.report.found == {
        "a missing file of annotations, left out": [lost]
    }
    with pytest.raises(
        MasksMissing, match="none of its 2 images has segmented objects"
    ):
        open_detection(tmp_path, masks=True)


def test_voc_masks_are_the_segmented_objects(tmp_path: Path) -> None:
    """Value k is the k-th object of the XML file; 255 is the border of all objects."""
    top = tmp_path / "VOC2012"
    values = np.zeros((40, 50), dtype=np.uint8)
    values[4:20, 9:30], values[25:40, 0:20], values[20, 9:30] = 1, 3, 255
    cat = voc_object("cat", (10, 5, 30, 20))
    lost = voc_object("dog", (40, 1, 45, 5))
    dog = voc_object("dog", (1, 26, 20, 40), difficult=1)
    for stem in ("a", "b", "c", "d"):
        write_voc_image(top, stem, [cat, lost, dog])
    for stem in ("a", "b"):
        write_voc_shapes(top, stem, values)
    write_voc_list(top, "train", ["a", "c", "d"])
    write_voc_list(top, "val", ["b"])
    # Without lists of segmented images, those of Main without the images that are not.
    splits = open_detection(tmp_path, masks=True)
    assert [each.image for each in splits.train.annotated] == [
        "VOC2012/JPEGImages/a.jpg"
    ]
    counts = splits.train.report.counts()
    assert counts["an image without segmented objects, left out"] == 2
    assert counts["an object without pixels of its own, left out"] == 1
    target = splits.train.target(0)
    assert target["labels"].tolist() == [1, 2]
    assert target["boxes"].tolist() == [[9, 4, 30, 20], [0, 25, 20, 40]]
    np.testing.assert_array_equal(
        target["masks"], np.stack([values == 1, values == 3]).astype(np.uint8)
    )
    assert target["area"].tolist() == [16 * 21, 15 * 20]
    assert splits.test.target(0)["iscrowd"].tolist() == [0, 1]
    # Boxes alone are of all images.
    for masks in (None, False):
        plain = open_detection(tmp_path, masks=masks).train
        assert (len(plain), plain.has_masks) == (3, False)
    write_voc_list(top, "train", ["b"], "Segmentation")
    write_voc_list(top, "val", ["a"], "Segmentation")
    splits = open_detection(tmp_path, masks=True)
    assert splits.train.annotated[0].image.endswith("b.jpg")
    assert splits.train.report.counts() == {
        "an object without pixels of its own, left out": 1
    }
    write_voc_shapes(top, "b", values.T.copy())
    with pytest.raises(DataError, match=r"b\.png is 40 x 50 pixels, its image 50 x 40"):
        open_detection(tmp_path, masks=True)


def test_voc_coordinates_from_zero_are_noticed(tmp_path: Path) -> None:
    for stem in "abc":
        write_voc_image(tmp_path, stem, [voc_object("dog", (0, 0, 49, 39))])
    with pytest.raises(DataError, match=r"begins at 0.*use `origin=0`"):
        open_detection(tmp_path)
    splits = open_detection(tmp_path, origin=0)
    assert splits.train.target(0)["boxes"].tolist() == [[0, 0, 50, 40]]
    assert (len(splits.train), len(splits.test)) == (2, 1)


def test_voc_years_are_read_together(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        for stem in ("t", "v"):
            box = voc_object(f"{year} {stem}", (1, 1, 9, 9))
            write_voc_image(tmp_path / year, stem, [box])
        write_voc_list(tmp_path / year, "trainval", ["t", "v"])
        write_voc_list(tmp_path / year, "train", ["t"])
        write_voc_list(tmp_path / year, "val", ["v"])
    splits = open_detection(tmp_path)  # without a test split, val must not train
    assert [len(splits.train), len(splits.test)] == [2, 2]
    assert {each.image for each in splits.train.annotated}.isdisjoint(
        each.image for each in splits.test.annotated
    )
    write_voc_list(tmp_path / "VOC2007", "test", ["v"])
    splits = open_detection(tmp_path)
    assert [len(splits.train), len(splits.test)] == [4, 1]


def test_a_size_that_voc_does_not_state_is_read_from_the_image(tmp_path: Path) -> None:
    for stem in "abc":
        write_voc_image(tmp_path, stem, [voc_object("dog", (1, 1, 90, 9))])
        file = tmp_path / "Annotations" / f"{stem}.xml"
        file.write_text(file.read_text().replace("<width>50</width>", ""))
    assert open_detection(tmp_path).train[0][1]["boxes"].tolist() == [[0, 0, 50, 9]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is not XML"),
        (voc_object("", (1, 1, 2, 2)), "object without a name"),
        (voc_object("dog", (1, "x", 2, 2)), "ymin='x', which is no number"),
        ("<object><name>dog</name></object>", "xmin=None, which is no number"),
    ],
)
def test_broken_voc_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    for stem in "abc":
        write_voc_image(tmp_path, stem, [text])
    with pytest.raises(DataError, match=message):
        open_detection(tmp_path)


# ---- instance masks ----


def test_penn_fudan_is_split_by_a_seeded_draw() -> None:
    path = shared("pennfudan-half.zip")
    splits = open_detection(path, class_name="person")
    assert (splits.layout, len(splits.train), len(splits.test)) == ("masks", 119, 51)
    names = [{each.image for each in s.annotated} for s in (splits.train, splits.test)]
    assert len(names[0] | names[1]) == 170
    objects = sum(
        len(e.labels) for s in (splits.train, splits.test) for e in s.annotated
    )
    assert objects == 423  # its readme counts 345 labelled ones; the rest was added
    again, other = open_detection(path), open_detection(path, split_seed=1)
    assert again.train.annotated[5].image == splits.train.annotated[5].image
    assert {each.image for each in other.test.annotated} != names[1]
    image, target = splits.train[7]
    assert target["masks"].shape[1:] == image.shape[1:]
    for box, mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_masks_need_the_size_of_their_image_and_one_value_per_pixel(
    tmp_path: Path,
) -> None:
    root = write_masks(tmp_path / "set")
    Image.new("L", (80, 96)).save(root / "masks" / "3.png")
    with pytest.raises(DataError, match=r"3\.png is 80 x 96 pixels, its image 96 x 80"):
        open_detection(root)
    Image.new("RGB", (96, 80)).save(root / "masks" / "3.png")
    with pytest.raises(DataError, match="one whole number per pixel"):
        open_detection(root)
    (root / "masks" / "3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png cannot be decoded"):
        open_detection(root)
    (root / "masks" / "3.png").unlink()
    with pytest.raises(DataError, match=r"1 images have no mask: images/3\.jpg"):
        open_detection(root)


def test_masks_may_be_left_out(tmp_path: Path) -> None:
    splits = open_detection(write_masks(tmp_path / "set"), masks=False)
    assert not splits.train.has_masks
    assert "masks" not in splits.train.target(0)


# ---- what belongs to no layout ----


def test_fingerprints_follow_the_annotations(coco: Path) -> None:
    before = open_detection(coco).train.fingerprint
    assert open_detection(coco).train.fingerprint == before
    known = edit_coco(coco)
    known["annotations"][0]["bbox"][2] += 1
    edit_coco(coco, annotations=known["annotations"])
    assert open_detection(coco).train.fingerprint != before


def test_labels_outside_of_the_classes_are_refused(coco: Path) -> None:
    train = open_detection(coco).train
    train.annotated[0].labels[0] = 0
    with pytest.raises(DataError, match="label 0; labels are 1 to 2, since 0 is the"):
        train.subset([0])


def test_unknown_layouts_and_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder or archive"):
        open_detection(tmp_path / "nothing")
    (tmp_path / "words.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="neither a folder nor a"):
        open_detection(tmp_path / "words.json")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="none of the layouts known"):
        open_detection(tmp_path)
    with pytest.raises(ValueError, match="test_share=1"):
        open_detection(tmp_path, test_share=1)
    with pytest.raises(ValueError, match="origin=2"):
        open_detection(tmp_path, origin=2)
