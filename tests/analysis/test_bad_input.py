"""What analyses say of images, layers and networks that they cannot use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastadv.analysis import analyze_influence, analyze_shape, analyze_similarity
from fastadv.analysis.config import InfluenceConfig, ShapeConfig, SimilarityConfig
from fastadv.analysis.contract import Findings
from fastadv.analysis.influence import LastLayer, influence
from fastadv.errors import ConfigError, DataError
from fastadv.models import create_model, save_model
from fastadv.results.portions import Portions


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise: many images, one that occurs twice, and a single one."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    counts = {"many": 20, "twice": 4, "single": 1}
    for split in ("train", "val"):
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    copy = (root / "train" / "twice" / "00.png").read_bytes()
    (root / "train" / "twice" / "01.png").write_bytes(copy)
    return root


CLASSES = ("many", "single", "twice")


def network(
    folder: Path, classes: tuple[str, ...] = CLASSES, head: float = 1.0
) -> Path:
    """A small network whose head is scaled; NaN makes its logits so."""
    model = create_model("resnet8_cifar", len(classes), seed=0)
    with torch.no_grad():
        model.head.weight.mul_(head)
    file = folder / "net.safetensors"
    save_model(model, file, {"resolution": 16, "classes": list(classes)})
    return file


def overflowing(folder: Path) -> Path:
    """A network whose activations overflow in its second stage."""
    model = create_model("resnet8_cifar", len(CLASSES), seed=0)
    with torch.no_grad():
        for name, parameter in model.net.layer2.named_parameters():
            if "conv" in name:
                parameter.fill_(3e38)
    file = folder / "overflow.safetensors"
    save_model(model, file, {"resolution": 16, "classes": list(CLASSES)})
    return file


def compute_influence(net: Path, data: Path, folder: Path, **more: object) -> Findings:
    config = InfluenceConfig(
        source=(str(net),), data=str(data), feature_cache="off", device="cpu", **more
    )
    return analyze_influence.prepare(config, str(net)).compute(Portions(folder))


def similarity_config(net: Path, data: Path, **more: object) -> SimilarityConfig:
    given = {"other": str(net), "device": "cpu"} | more
    return SimilarityConfig(source=(str(net),), data=str(data), **given)


def compare(net: Path, data: Path, folder: Path, **more: object) -> Findings:
    config = similarity_config(net, data, **more)
    return analyze_similarity.prepare(config, str(net)).compute(Portions(folder))


# ---- influence ----


def test_duplicates_and_classes_of_one_image(pictures: Path, tmp_path: Path) -> None:
    """Copies have the same influence, and a class of one image is no exception."""
    found = compute_influence(network(tmp_path), pictures, tmp_path).arrays
    top, values = found["top"], found["influence"]
    # Sorted by class: 20 of many, one single, then the two copies.
    assert found["train_labels"].tolist() == [0] * 20 + [1] + [2] * 4
    for ranks, each in zip(top, values, strict=True):
        of = dict(zip(ranks.tolist(), each.tolist(), strict=True))
        assert of[21] == pytest.approx(of[22], rel=1e-5)
        assert of[21] != pytest.approx(of[23], rel=1e-5)
    assert np.isfinite(values).all()


def test_as_many_training_images_as_classes(pictures: Path, tmp_path: Path) -> None:
    found = compute_influence(network(tmp_path), pictures, tmp_path, num_train=3)
    assert found.arrays["top"].shape == (25, 3)
    assert [each.metric for each in found.numbers] == ["same_class_top1"]
    with pytest.raises(ConfigError, match="cannot contain all 3 classes"):
        compute_influence(network(tmp_path), pictures, tmp_path, num_train=2)


@pytest.mark.parametrize("batch_size", [4, 64])
def test_unreadable_images_count_for_nothing(
    pictures: Path, tmp_path: Path, batch_size: int
) -> None:
    data = tmp_path / "damaged"
    for file in pictures.rglob("*.png"):
        copy = data / file.relative_to(pictures)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    (data / "train" / "many" / "03.png").write_bytes(b"not a picture")
    (data / "val" / "many" / "05.png").write_bytes(b"not a picture")
    net = network(tmp_path)
    found = compute_influence(net, data, tmp_path / "p", batch_size=batch_size)
    assert found.arrays["train_labels"].tolist() == [0] * 19 + [1] + [2] * 4
    assert found.arrays["top"].shape == (24, 24)
    assert [each.n for each in found.numbers] == [24, 24]
    # As if they had never been there.
    for split in ("train/many/03.png", "val/many/05.png"):
        (data / split).unlink()
    without = compute_influence(net, data, tmp_path / "q", batch_size=batch_size)
    np.testing.assert_array_equal(found.arrays["top"], without.arrays["top"])


def test_separable_images(pictures: Path, tmp_path: Path) -> None:
    certain = network(tmp_path, head=1e9)
    with pytest.raises(ConfigError, match=r"net.*certain of every training image"):
        compute_influence(certain, pictures, tmp_path)


def test_a_damping_that_rounding_swallows() -> None:
    h = np.repeat(np.random.default_rng(0).standard_normal((4, 3)), 3, 0)
    h[:, 2] = h[:, 1]  # singular: two inputs are one
    layer = LastLayer.from_embeddings(h, np.arange(12) % 3, np.ones((3, 3)))
    with pytest.raises(ValueError, match=r"damping=1e-300 is too small"):
        influence(layer, layer, damping=1e-300)
    assert np.isfinite(influence(layer, layer, damping=1e-3)).all()


def test_a_singular_hessian_has_a_pseudo_inverse() -> None:
    """What no training image varies in has no influence, and nothing becomes infinite."""
    rng = np.random.default_rng(1)
    h, labels = rng.standard_normal((40, 4)), np.arange(40) % 3
    weight = rng.standard_normal((3, 4))
    narrow = LastLayer.from_embeddings(h, labels, weight)
    # The same with a fifth input that is always zero, and with one that is there twice.
    zero = LastLayer.from_embeddings(
        np.column_stack([h, np.zeros(40)]),
        labels,
        np.column_stack([weight, np.ones(3)]),
    )
    np.testing.assert_allclose(
        influence(zero, zero), influence(narrow, narrow), rtol=1e-9, atol=1e-12
    )


def test_embeddings_that_are_not_finite_name_the_network(
    pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=r"overflow.*25 of 25 embeddings are not finite"
    ):
        compute_influence(overflowing(tmp_path), pictures, tmp_path)


def test_other_classes(pictures: Path, tmp_path: Path) -> None:
    other = network(tmp_path, ("many", "once", "twice"))
    with pytest.raises(ConfigError, match=r"'once' stands where the data has 'single'"):
        compute_influence(other, pictures, tmp_path)
    with pytest.raises(ConfigError, match=r"has 2 classes, .* has 3"):
        compute_influence(network(tmp_path, ("a", "b")), pictures, tmp_path)


# ---- similarity ----


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("layer9",), r"unknown layer 'layer9'; perhaps you meant: layer"),
        (("embeding",), r"perhaps you meant: embedding"),
        (("layer1", "zzz"), r"unknown layer 'zzz'; known: "),
    ],
)
@pytest.mark.parametrize("which", ["layers", "other_layers"])
def test_layers_that_do_not_exist(
    pictures: Path, tmp_path: Path, layers: tuple[str, ...], message: str, which: str
) -> None:
    config = similarity_config(network(tmp_path), pictures, **{which: layers})
    with pytest.raises(ConfigError, match=message):
        analyze_similarity.prepare(config, config.source[0])


def test_an_overflow_names_its_layers(pictures: Path, tmp_path: Path) -> None:
    net = overflowing(tmp_path)
    for measure in ("cka", "svcca"):
        with pytest.raises(
            ConfigError, match=r"activations of .*layer2.*embedding are not finite"
        ):
            compare(net, pictures, tmp_path / measure, measure=measure)
    assert compare(net, pictures, tmp_path / "one", layers=("layer1",)).numbers


def test_few_images(pictures: Path, tmp_path: Path) -> None:
    """Of three images CKA knows nothing; classes of one image do no harm."""
    with pytest.raises(ConfigError, match="at least four images"):
        compare(network(tmp_path), pictures, tmp_path / "a", num_images=3)
    found = compare(
        network(tmp_path), pictures, tmp_path / "b", num_images=6, batch_size=4
    )
    assert [each.value for each in found.numbers] == pytest.approx([1] * 4)


def test_images_that_are_all_the_same(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in CLASSES:
            (tmp_path / "same" / split / name).mkdir(parents=True)
            for i in range(3):
                file = tmp_path / "same" / split / name / f"{i}.png"
                Image.new("RGB", (16, 16), (90, 90, 90)).save(file)
    with pytest.raises(ConfigError, match="do not differ between images"):
        compare(network(tmp_path), tmp_path / "same", tmp_path / "p")


# ---- shape ----


def cues(folder: Path, categories: str) -> Path:
    """Three conflicts of four categories."""
    folder.mkdir()
    for name in ("cat1-dog1", "dog1-cat1", "cat2-bear1", "bear1-clock1"):
        Image.new("RGB", (16, 16)).save(folder / f"{name}.png")
    (folder / "categories16.json").write_text(categories)
    return folder


def shape_of(net: Path, data: Path) -> Findings:
    config = ShapeConfig(source=(str(net),), data=str(data), device="cpu")
    prepared = analyze_shape.prepare(config, str(net))
    return prepared.compute(Portions(data / "portions"))


def test_holes_in_the_classes_of_categories(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A category without a class of the network leaves its images out, and is named."""
    net = network(tmp_path, ("n1", "n2", "n3"))
    data = cues(tmp_path / "a", '{"cat": ["n1"], "dog": ["n2"], "bear": []}')
    found = shape_of(net, data)
    assert found.numbers[1].n == 2
    assert "2 of 4 images with a conflict are left out" in caplog.text
    assert "no class of bear, clock" in caplog.text


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ('{"cat": ["n1"], "dog": []}', "knows classes of 1 of the categories"),
        ('{"cat": "n1", "dog": ["n2"]}', "'cat' has 'n1' instead of a list"),
        ('{"cat": ["n1"], "dog": ["n1", "n2"]}', "lists n1 under more than one"),
        ('{"cat": ["n1"], "dog"', "cannot be read"),
        (
            '{"knife": ["n1"], "oven": ["n2"]}',
            "no image of .* has two of the categories",
        ),
    ],
)
def test_categories_that_cannot_be(
    tmp_path: Path, categories: str, message: str
) -> None:
    net = network(tmp_path, ("n1", "n2", "n3"))
    with pytest.raises((ConfigError, DataError), match=message):
        shape_of(net, cues(tmp_path / "a", categories))
