"""Layouts of image files as people bring them: splits, lists, one more folder on top."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from odd_data import content, write

from fastadv.data import open_dataset, open_judged_splits
from fastadv.errors import DataError

TRAIN = ("train/a/{1,2,3}.png", "train/b/{4,5,6}.png")
IN_TRAIN = {"a": [1, 2, 3], "b": [4, 5, 6]}
HELD = {"a": [7], "b": [8]}


# ---- one rule for splits ----


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("train", "held", "other"),
    [
        ("train", "validation", "test"),
        ("Train", "Valid", "TEST"),
        ("training", "val", "testing"),
        ("trn", "dev", "eval"),
        ("TRAINING", "Development", "Evaluation"),
        ("seg_train", "seg_val", "seg_test"),
        ("training_set", "validation_set", "test_set"),
        ("train2017", "val2017", "test2017"),
        ("TrainSet", "ValidationSet", "TestSet"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", "test_images"),
    ],
)
def test_validation_comes_before_test_in_any_spelling(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    train: str,
    held: str,
    other: str,
    packed: bool,
) -> None:
    root = write(
        tmp_path / "set",
        *(path.replace("train/", f"{train}/") for path in TRAIN),
        f"{held}/a/7.png",
        f"{held}/b/8.png",
        f"{other}/a/9.png",
        f"{other}/b/10.png",
    )
    path = shutil.make_archive(str(root), "zip", root) if packed else root
    splits = open_dataset(path)
    assert (content(splits.train), content(splits.test)) == (IN_TRAIN, HELD)
    assert f"evaluating on {held}/" in caplog.text
    assert f"eval_split={other}" in caplog.text
    chosen = open_dataset(path, eval_split=other)
    assert content(chosen.test) == {"a": [9], "b": [10]}


@pytest.mark.parametrize(
    "unlabelled",
    ["test/{9,10}.png", "test/unknown/{9,10}.png", "test/images/{9,10}.png"],
)
def test_a_split_without_labels_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unlabelled: str
) -> None:
    held = ("validation/a/7.png", "validation/b/8.png")
    splits = open_dataset(write(tmp_path / "one", *TRAIN, *held, unlabelled))
    assert (content(splits.train), content(splits.test)) == (IN_TRAIN, HELD)
    assert "one: test/ has no labels (2 images); it is passed over" in caplog.text
    assert "ignored" not in caplog.text
    caplog.clear()
    # Without a labelled one, a part of the training split is held out.
    splits = open_dataset(write(tmp_path / "two", *TRAIN, unlabelled))
    assert "test/ has no labels (2 images); it is passed over" in caplog.text
    assert "one split only (6 images)" in caplog.text
    assert (len(splits.train), len(splits.test)) == (4, 2)
    with pytest.raises(
        DataError, match=r"test/, which eval_split names, has no labels"
    ):
        open_dataset(tmp_path / "one", eval_split="test")


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        "train/{1,2}.png",
        "sofa/{3,4}.png",
        "tvmonitor/{5,6}.png",
        "cat/{7,8}.png",
    )
    splits = open_dataset(root)
    assert splits.train.classes == ("cat", "sofa", "train", "tvmonitor")
    # Other classes with words of splits in their names.
    root = write(tmp_path / "two", "dev_board/{1,2}.png", "test_tube/{3,4}.png")
    assert open_dataset(root).train.classes == ("dev_board", "test_tube")


# ---- data sets as they are distributed ----


def tiny_imagenet(root: Path) -> Path:
    names = ("n02124075", "n01443537")
    return write(
        root,
        f"train/{names[0]}/images/{names[0]}_{{1,2,3}}.JPEG".replace(
            f"{names[0]}_", "x"
        ),
        f"train/{names[1]}/images/x{{4,5,6}}.JPEG",
        "val/images/val{7,8}.JPEG",
        "test/images/test{9,10}.JPEG",
        text={
            "wnids.txt": "n02124075\nn01443537\n",
            "words.txt": "n01443537\tgoldfish\nn02124075\tEgyptian cat\n",
            "val/val_annotations.txt": "val7.JPEG\tn02124075\t0\t32\t44\t62\n"
            "val8.JPEG\tn01443537\t52\t55\t57\t59\n",
            "train/n02124075/n02124075_boxes.txt": "x1.JPEG\t0\t10\t63\t58\n",
        },
    )


@pytest.mark.parametrize("top", ["", "tiny-imagenet-200/"])
def test_tiny_imagenet(tmp_path: Path, top: str) -> None:
    tiny_imagenet(tmp_path / "data" / top)
    splits = open_dataset(tmp_path / "data")
    assert splits.train.classes == ("n01443537", "n02124075")
    assert content(splits.train) == {"n02124075": [1, 2, 3], "n01443537": [4, 5, 6]}
    assert content(splits.test) == {"n02124075": [7], "n01443537": [8]}
    alone = open_judged_splits(tmp_path / "data" / top / "val").test
    assert content(alone) == content(splits.test)
    packed = shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path / "data")
    assert content(open_dataset(packed).test) == content(splits.test)


def test_cub(tmp_path: Path) -> None:
    root = write(
        tmp_path / "CUB_200_2011",
        "images/001.Albatross/{1,2}.jpg",
        "images/002.Auklet/{3,4}.jpg",
        text={
            "images.txt": "1 001.Albatross/1.jpg\n2 001.Albatross/2.jpg\n"
            "3 002.Auklet/3.jpg\n4 002.Auklet/4.jpg\n",
            "image_class_labels.txt": "1 1\n2 1\n3 2\n4 2\n",
            "train_test_split.txt": "1 1\n2 0\n3 0\n4 1\n",
            "classes.txt": "1 001.Albatross\n2 002.Auklet\n",
            "attributes/certainties.txt": "1 not visible\n",
        },
    )
    for path in (root, root.parent):  # one more folder on top
        splits = open_dataset(path)
        assert content(splits.train) == {"001.Albatross": [1], "002.Auklet": [4]}
        assert content(splits.test) == {"001.Albatross": [2], "002.Auklet": [3]}
    (root / "images/002.Auklet/4.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the 4 images that images\.txt lists"):
        open_dataset(root)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "id,breed\n1,a\n2,a\n3,b\n4,b\n5,\n"),
        ("train.csv", "image_id;label\nimages/1.png;a\n2.png;a\n3.png;b\n4.png;b\n"),
        ("labels.txt", "1.png a\n2.png a\n3.png b\n4.png b\n"),
        ("list.tsv", "1.png\ta\n2.png\ta\n3.png\tb\n4.png\tb\n"),
        (
            "metadata.csv",
            "file_name,width,label\n1.png,6,a\n2.png,6,a\n3.png,6,b\n4.png,6,b\n",
        ),
        ("meta.csv", "image,a,b\n1,1.0,0.0\n2,1.0,0.0\n3,0.0,1.0\n4,0.0,1.0\n"),
        (
            "metadata.jsonl",
            '{"file_name": "1.png", "label": "a"}\n{"file_name": "2.png", "label": "a"}\n'
            '{"file_name": "3.png", "label": "b"}\n{"file_name": "4.png", "label": "b"}\n',
        ),
    ],
)
def test_a_flat_folder_with_a_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, text: str
) -> None:
    root = write(tmp_path / "flat", "images/{1,2,3,4,5}.png", text={name: text})
    if name != "train.csv":  # of which a part is held out
        images = open_judged_splits(root).test
        assert content(images) == {"a": [1, 2], "b": [3, 4]}
    left = "have no label" if name == "labels.csv" else "1 of 5 images"
    assert "train" in name or left in caplog.text
    splits = open_dataset(root, holdout=0.4)
    assert (len(splits.train), len(splits.test)) == (2, 2)


def test_lists_of_kaggle(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write(
        tmp_path / "kaggle",
        "train_images/{1,2,3,4}.jpg",
        "test_images/{5,6}.jpg",
        text={
            "train.csv": "image_id,label\n1.jpg,0\n2.jpg,0\n3.jpg,1\n4.jpg,1\n",
            "sample_submission.csv": "image_id,label\n5.jpg,4\n6.jpg,4\n",
            "label_num_to_disease_map.json": '{"0": "blight", "1": "healthy"}',
        },
    )
    images = open_judged_splits(root)
    assert images.train.classes == ("blight", "healthy")
    everything = content(images.train).keys() | content(images.test).keys()
    assert everything == {"blight", "healthy"}
    assert "test_images/ has no labels (2 images)" in caplog.text
    # GTSRB: folders of training classes, and a list for the flat test folder.
    root = write(
        tmp_path / "gtsrb",
        "Train/0/{1,2}.png",
        "Train/1/{3,4}.png",
        "Test/{5,6}.png",
        text={
            "Test.csv": "Width,Height,ClassId,Path\n6,5,1,Test/5.png\n6,5,0,Test/6.png\n"
        },
    )
    splits = open_dataset(root)
    assert content(splits.test) == {"1": [5], "0": [6]}


def test_lists_that_name_the_splits(tmp_path: Path) -> None:
    paths = ("images/a/{1,2}.jpg", "images/b/{3,4}.jpg")
    food = write(
        tmp_path / "food",
        *paths,
        text={"meta/train.txt": "a/1\nb/3\n", "meta/test.txt": "a/2\nb/4\n"},
    )
    caffe = write(
        tmp_path / "caffe",
        *paths,
        text={
            "train.txt": "images/a/1.jpg 0\nimages/b/3.jpg 1\n",
            "val.txt": "a/2.jpg 0\nb/4.jpg 1\n",
        },
    )
    column = write(
        tmp_path / "column",
        *paths,
        text={
            "birds.csv": "class id,filepaths,labels,data set\n0,a/1.jpg,a,train\n"
            "0,a/2.jpg,a,valid\n1,b/3.jpg,b,train\n1,b/4.jpg,b,valid\n"
        },
    )
    for root, names in ((food, "ab"), (caffe, "01"), (column, "ab")):
        splits = open_dataset(root)
        assert content(splits.train) == {names[0]: [1], names[1]: [3]}
        assert content(splits.test) == {names[0]: [2], names[1]: [4]}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "ILSVRC2012_val_7.JPEG 1\nILSVRC2012_val_8.JPEG 0\n"),
        ("val/labels.txt", "ILSVRC2012_val_7.JPEG n02\nILSVRC2012_val_8.JPEG n01\n"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_7,n00000002 1 2 3 4\n"
            "ILSVRC2012_val_8,n00000001 85 1 499 272 n00000001 1 1 1 1\n",
        ),
        ("validation_synset_labels.txt", "n02\nn01\n"),
    ],
)
def test_a_flat_validation_folder_of_ilsvrc(
    tmp_path: Path, name: str, text: str
) -> None:
    wnids = ("n00000001", "n00000002") if "LOC" in name else ("n01", "n02")
    root = write(
        tmp_path / "ilsvrc",
        f"train/{wnids[0]}/{{1,2}}.JPEG",
        f"train/{wnids[1]}/{{3,4}}.JPEG",
        text={name: text},
    )
    for value in (7, 8):
        source = write(tmp_path / "more", f"{value}.JPEG") / f"{value}.JPEG"
        (root / "val").mkdir(exist_ok=True)
        shutil.copy(source, root / f"val/ILSVRC2012_val_{value}.JPEG")
    splits = open_dataset(root)
    assert content(splits.test) == {wnids[1]: [7], wnids[0]: [8]}


def test_the_ids_of_the_devkit_need_its_table(tmp_path: Path) -> None:
    import numpy as np
    from scipy.io import savemat

    truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    root = write(
        tmp_path / "x", "train/n01/{1,2}.png", "train/n02/{3,4}.png", "val/{7,8}.png",
        text={truth: "1\n2\n"},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"not in the order.*put meta\.mat"):
        open_dataset(root)
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", object), ("words", object)]
    rows = np.array([(1, "n02", "x"), (2, "n01", "y")], dtype=kinds)
    savemat(root / "ILSVRC2012_devkit_t12/data/meta.mat", {"synsets": rows})
    assert content(open_dataset(root).test) == {"n02": [7], "n01": [8]}


def test_class_folders_without_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(
        tmp_path / "photos",
        "a/{1,2,3,4}.png",
        "b/{5,6,7,8}.png",
        text={"README.md": "hi"},
    )
    splits = open_dataset(root, holdout=0.25)
    assert (
        "one split only (8 images): 0.25 of it, stratified, with seed 0" in caplog.text
    )
    assert (len(splits.train), len(splits.test)) == (6, 2)
    again = open_dataset(root, holdout=0.25)
    assert again.test.fingerprint == splits.test.fingerprint
    # Nested in one more folder, and in two.
    shutil.copytree(root, tmp_path / "top/one/two")
    assert content(open_dataset(tmp_path / "top", holdout=0.25).test) == content(
        splits.test
    )
    # A folder of domains is no folder of classes.
    office = write(
        tmp_path / "office",
        "Art/{0}/1.png",
        "Art/b/2.png",
        "Clip/0/3.png",
        "Clip/b/4.png",
    )
    with pytest.raises(DataError, match=r"hold the same folders.*open one of them"):
        open_dataset(office)


def test_what_lies_beside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Archives that were unpacked, and folders that are of no split."""
    from record_files import samples, write_tar

    root = write(tmp_path / "a", "Training/a/{1,2}.png", "Training/b/{3,4}.png")
    write(root, "Test/a/5.png", "Test/b/6.png", "test-multiple_fruits/{7,8}.png")
    write_tar(root / "archive.tar", samples([1, 2]))
    splits = open_dataset(root)
    assert content(splits.test) == {"a": [5], "b": [6]}
    assert "'test-multiple_fruits' are of no split and left out" in caplog.text
    root = write(tmp_path / "b", "a/{1,2}.png", "b/{3,4}.png")
    write_tar(root / "b.tgz", samples([1, 2]))
    assert content(open_judged_splits(root).test) == {"a": [1, 2], "b": [3, 4]}


def test_wrappers_inside_splits(tmp_path: Path) -> None:
    root = write(
        tmp_path / "a",
        "training_set/training_set/cats/{1,2,3}.png",
        "training_set/training_set/dogs/{4,5}.png",
        "test_set/test_set/cats/7.png",
        "test_set/test_set/dogs/8.png",
    )
    splits = open_dataset(root)
    assert content(splits.train) == {"cats": [1, 2, 3], "dogs": [4, 5]}
    assert content(splits.test) == {"cats": [7], "dogs": [8]}


@pytest.mark.parametrize(
    ("paths", "text", "message"),
    [
        (("{1,2}.png",), {}, r"2 images without a list of labels"),
        (
            ("train/{1,2}.png", "val/a/3.png"),
            {},
            r"train/ has no class folders, and no list",
        ),
        (
            ("images/{1,2}.png",),
            {"x.csv": "file,p,q\n1.png,3,4\n2.png,3,5\n"},
            r"which of its columns is the label is not clear: p, q; give .*label_column",
        ),
        (
            ("images/{1,2}.png",),
            {"x.csv": "file,p,q\n1.png,1,1\n2.png,0,1\n"},
            r"marks 2 classes for one image",
        ),
        (
            ("train/a/1.png", "train/b/2.png", "val/{3,4}.png"),
            {"val.txt": "3.png a\n4.png zebra\n"},
            r"'zebra' are in the list of val/ but not in train/",
        ),
    ],
)
def test_refusals_say_what_to_do(
    tmp_path: Path, paths: tuple[str, ...], text: dict[str, str], message: str
) -> None:
    root = write(tmp_path / "x", *paths, text=text)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


def test_columns_of_lists_can_be_named(tmp_path: Path) -> None:
    rows = "file,p,q\n1.png,x,z\n2.png,y,z\n"
    root = write(tmp_path / "x", "images/{1,2}.png", text={"x.csv": rows})
    images = open_judged_splits(root, label_column="p").test
    assert content(images) == {"x": [1], "y": [2]}
    with pytest.raises(DataError, match=r"no column 'r'.*it has file, p, q"):
        open_judged_splits(root, label_column="r")
