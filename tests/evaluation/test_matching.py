"""Networks judged on data of other classes: parts of ImageNet, numbers, corruptions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from odd_data import write

from fastadv.data import open_judged_splits
from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.config import EvaluationConfig
from fastadv.evaluation.matching import match_classes
from fastadv.evaluation.source import evaluate_checkpoint
from fastadv.models import create_model, save_model
from fastadv.models.source import Source, open_source

# Imagenette's ten classes, and the outputs that they have among ImageNet's thousand.
WNIDS = {
    "n01440764": 0, "n02102040": 217, "n02979186": 482, "n03000684": 491,
    "n03028079": 497, "n03394916": 566, "n03417042": 569, "n03425413": 571,
    "n03445777": 574, "n03888257": 701,
}  # fmt: skip


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """An untrained network of ImageNet's thousand classes that states no names."""
    pytest.importorskip("timm")
    file = tmp_path_factory.mktemp("source") / "net.safetensors"
    save_model(create_model("resnet8_cifar", 1000, seed=3), file, {"resolution": 32})
    return open_source(str(file), "thousand")


def folders(root: Path, *names: str) -> Path:
    return write(
        root, *(f"{name}/{{{i},{i + 100}}}.png" for i, name in enumerate(names))
    )


@pytest.mark.parametrize(
    "layout",
    ["imagenette/val/{}", "imagenet-r/{}", "imagenet-c/fog/3/{}", "numbers/{}"],
)
def test_a_part_of_imagenets_classes(
    thousand: Source, tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / layout.format("")
    names = [str(i) for i in WNIDS.values()] if "numbers" in layout else list(WNIDS)
    folders(root, *names)
    path = root.parent if "imagenette" in layout else root
    images = open_judged_splits(path).test
    matched = match_classes(thousand, images)
    outputs = dict(zip(matched.images.classes, matched.groups or (), strict=True))
    assert outputs == {
        name: (i,) for name, i in zip(names, WNIDS.values(), strict=True)
    }
    assert "10 classes by 10 of 1000 outputs" in caplog.text
    assert "20 of 20 images are judged" in caplog.text
    x = torch.rand(3, 3, 32, 32)
    whole = thousand.load().eval()(x)
    own = matched.model(thousand).eval()(x)
    order = [WNIDS[n] if n in WNIDS else int(n) for n in matched.images.classes]
    torch.testing.assert_close(own, whole[:, order])


def test_among_all_outputs_a_network_may_choose_another(
    thousand: Source, tmp_path: Path
) -> None:
    images = open_judged_splits(folders(tmp_path / "r", *WNIDS)).test
    matched = match_classes(thousand, images, all_outputs=True)
    model = matched.model(thousand).eval()
    x = torch.rand(3, 3, 32, 32)
    whole = thousand.load().eval()(x)
    own = model(x)
    assert own.shape == (3, 1000)
    torch.testing.assert_close(own[:, :10], whole[:, list(WNIDS.values())])
    torch.testing.assert_close(own.sort(1).values, whole.sort(1).values)
    assert matched.images.labels.max() == 9
    assert len(matched.images.classes) == 1000


def test_the_attack_is_within_the_restriction(thousand: Source, tmp_path: Path) -> None:
    """The command's accuracies are those of the rows of the network by hand."""
    root = folders(tmp_path / "r", *list(WNIDS)[:4], "n99999999")
    found = {}
    for every in (False, True):
        config = EvaluationConfig(
            checkpoint=str(thousand.file),
            data=str(root),
            eps=0.5,
            num_steps=2,
            batch_size=4,
            workers=0,
            all_outputs=every,
            results=str(tmp_path / "results"),
        )
        found[every] = evaluate_checkpoint(config)
    for every, evaluated in found.items():
        clean, robust = evaluated.rows
        assert clean.n == 8  # the fifth class is left out
        assert not any("training mode" in w for w in evaluated.result["warnings"])
        assert (clean.setting.left_out, clean.setting.all_outputs) == (1, every)
        assert clean.setting.class_map is not None
        assert robust.value <= clean.value
        model = thousand.load().eval()
        images = match_classes(thousand, open_judged_splits(root).test).images
        side = torch.nn.functional.interpolate
        right = 0
        outputs = torch.tensor(list(WNIDS.values())[:4])
        for i, label in enumerate(images.labels):
            x = torch.from_numpy(np.array(images.load(i))).permute(2, 0, 1)[None] / 255
            # All pixels of an image are equal, so that resizing changes none.
            logits = model(side(x, (32, 32)))[0]
            chosen = logits.argmax() if every else outputs[logits[outputs].argmax()]
            right += int(chosen) == int(outputs[label])
        assert clean.value == pytest.approx(100 * right / 8)
    first, second = (found[every].rows[0] for every in (False, True))
    assert first.identity != second.identity
    assert len(found[False].rows[0].target.class_names) == 4


def test_what_cannot_be_matched(thousand: Source, tmp_path: Path) -> None:
    strange = open_judged_splits(folders(tmp_path / "x", "spoon", "fork"))
    with pytest.raises(ConfigError, match="knows 0 of the 2 classes"):
        match_classes(thousand, strange.test)
    for severity in (1, 3):
        folders(tmp_path / f"c/fog/{severity}", *list(WNIDS)[:2])
    for path in (tmp_path / "c", tmp_path / "c/fog"):
        with pytest.raises(
            DataError, match=r"like ImageNet-C; open one of them, for ex"
        ):
            open_judged_splits(path)


def test_a_network_is_judged_on_what_its_training_held_out(tmp_path: Path) -> None:
    paths = ("a/{0,1,2,3,4,5,6,7,8,9}.png", "b/{10,11,12,13,14,15,16,17,18,19}.png")
    root = write(tmp_path / "own", *paths)
    model = create_model("resnet8_cifar", 2, seed=3)
    sizes = {}
    for name, data in (("own", str(root)), ("other", "digits")):
        file = tmp_path / f"{name}.safetensors"
        facts = {
            "resolution": 32,
            "classes": ["a", "b"],
            "config": {"augment": "none", "data": data},
        }
        save_model(model, file, facts)
        config = EvaluationConfig(
            checkpoint=str(file), data=str(root), eps=0, workers=0,
            results=str(tmp_path / "results"),
        )  # fmt: skip
        sizes[name] = evaluate_checkpoint(config).rows[0].n
    assert sizes == {"own": 2, "other": 20}
