"""The images that analyses see: reduced ones, and ones that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from fastadv.analysis import (
    analyze_gradients,
    analyze_influence,
    analyze_inversion,
    analyze_manipulation,
    analyze_shift,
    analyze_similarity,
    analyze_visualization,
    analyze_vulnerability,
)
from fastadv.analysis.config import (
    InfluenceConfig,
    ManipulationConfig,
    SimilarityConfig,
)
from fastadv.analysis.seeing_config import (
    GradientsConfig,
    InversionConfig,
    VisualizationConfig,
)
from fastadv.analysis.shift_config import ShiftConfig
from fastadv.analysis.vulnerability_config import Network, VulnerabilityConfig
from fastadv.data import open_dataset
from fastadv.data.loading.geometry import resize_center_crop, usual_preparation
from fastadv.data.sets.subsets import Downscaled, subset
from fastadv.errors import DataError
from fastadv.models import create_model, save_model
from fastadv.results.portions import Portions
from fastadv.results.row import TargetRecord

SIDE, REDUCED = 16, 4
CLASSES = ("one", "two")
_LOW_PASS = {"how": "low_pass", "levels": (2.0,), "num_images": 12}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network of the digits whose training images were reduced to 4 px."""
    file = tmp_path_factory.mktemp("source") / "net.safetensors"
    about = {"resolution": SIDE, "downscale": REDUCED}
    save_model(create_model("resnet8_cifar", 10, seed=3), file, about)
    return str(file)


def prepared(images: Any) -> NDArray[np.uint8]:
    how = usual_preparation(images.augment_default, SIDE)
    found = [resize_center_crop(images.load(i), how) for i in range(len(images))]
    return np.stack(found).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def seen() -> dict[str, NDArray[np.uint8]]:
    """The test images of digits as they are, and reduced, both as networks see them."""
    test = open_dataset("digits").test
    return {"whole": prepared(test), "reduced": prepared(Downscaled(test, REDUCED))}


def found(module: Any, config: Any, subject: Any, folder: Path) -> dict[str, Any]:
    """Analyse a network; check that its row says to what images were reduced."""
    analysis = module.prepare(config, subject)
    assert analysis.target.downscale == REDUCED
    return dict(analysis.compute(Portions(folder)).arrays)


def are_among(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> bool:
    known = {image.tobytes() for image in others}
    return all(np.ascontiguousarray(image).tobytes() in known for image in images)


def few(config: Any, source: str, **more: Any) -> Any:
    given = {"source": (source,), "data": "digits", "device": "cpu", "num_images": 10}
    return config(**(given | more))


def test_pictures_are_of_reduced_images(
    source: str, seen: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    gradients = few(GradientsConfig, source)
    units = few(VisualizationConfig, source, start="images", units=(0,), num_steps=1)
    inversion = few(InversionConfig, source, num_steps=1)
    arrays = found(analyze_gradients, gradients, source, tmp_path / "g")
    images = [arrays["images"]]
    arrays = found(analyze_visualization, units, source, tmp_path / "v")
    images.append(arrays["starts"][0])
    arrays = found(analyze_inversion, inversion, source, tmp_path / "i")
    images += [arrays["targets"], arrays["starts"]]
    for each in images:
        assert len(each) == 10
        assert are_among(each, seen["reduced"])
        assert not are_among(each, seen["whole"])


@pytest.mark.parametrize(
    ("module", "config", "more", "judged"),
    [
        (analyze_influence, InfluenceConfig, {"num_train": 30, "num_test": 12}, 12),
        (
            analyze_influence,
            InfluenceConfig,
            {"num_train": 30, "num_test": 12, "queries": "train"},
            30,
        ),
        (analyze_gradients, GradientsConfig, {"num_images": 12}, 12),
        # Twelve targets, and twelve other images to start from.
        (analyze_inversion, InversionConfig, {"num_images": 12}, 24),
        (analyze_manipulation, ManipulationConfig, _LOW_PASS, 12),
        (analyze_shift, ShiftConfig, {"num_images": 12}, 12),
        (analyze_similarity, SimilarityConfig, {"num_images": 12}, 12),
    ],
)
def test_a_row_names_the_images_that_were_judged(
    source: str, module: Any, config: Any, more: dict[str, Any], judged: int
) -> None:
    """A part of the split is not called the split: count and fingerprint are its own."""
    if config is SimilarityConfig:
        more = more | {"other": source}
    given = {"source": (source,), "data": "digits", "device": "cpu"}

    def target(**changed: Any) -> TargetRecord:
        return module.prepare(config(**(given | more | changed)), source).target

    part, other = target(), target(seed=1)
    assert part.num_test == other.num_test == judged
    assert part.fingerprint != other.fingerprint
    if config is InfluenceConfig and "queries" not in more:
        whole = target(num_test=None)
        test = Downscaled(open_dataset("digits").test, REDUCED)
        assert (whole.num_test, whole.fingerprint) == (len(test), test.fingerprint)


def test_a_gaussian_is_fitted_to_reduced_images(source: str, tmp_path: Path) -> None:
    """Of images without fine detail it draws none either."""
    detail = {}
    plain = tmp_path / "plain.safetensors"
    model = create_model("resnet8_cifar", 10, seed=3)
    save_model(model, plain, {"resolution": SIDE})
    for name in (source, str(plain)):
        config = few(
            VisualizationConfig, name, classes=("3",), start="gaussian", num_steps=1
        )
        analysis = analyze_visualization.prepare(config, name)
        arrays = analysis.compute(Portions(tmp_path / Path(name).stem)).arrays
        starts = arrays["starts"].astype(float)
        detail[name] = np.abs(np.diff(starts, 2, axis=-1)).mean()
    assert detail[source] < 0.7 * detail[str(plain)]


def test_decisions_are_on_reduced_images(
    source: str, seen: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    model = create_model("resnet8_cifar", 10, seed=3).eval()
    with torch.no_grad():
        logits = {
            name: model(torch.from_numpy(images).float() / 255).numpy()
            for name, images in seen.items()
        }
    shift = few(ShiftConfig, source, corruptions=("none",), num_images=None)
    arrays = found(analyze_shift, shift, source, tmp_path / "s")
    kept = arrays["clean_logits"]
    np.testing.assert_allclose(kept, logits["reduced"], rtol=1e-3, atol=1e-4)
    assert np.abs(kept - logits["whole"]).max() > 0.01
    test = open_dataset("digits").test
    # They are the same images as those of networks that see them otherwise.
    assert str(arrays["image_set"]) == test.fingerprint
    config = few(
        VulnerabilityConfig, source, num_images=40, num_steps=1, universal_images=20
    )
    network, chosen = Network(source, "source"), subset(test, 40, 0).indices
    alone = found(analyze_vulnerability, config, network, tmp_path / "n")
    pair = found(analyze_vulnerability, config, (network, network), tmp_path / "u")
    for each in (alone, pair):
        wanted = {name: of.argmax(1)[chosen] for name, of in logits.items()}
        assert (each["decided"] == wanted["reduced"]).mean() > 0.95  # but for ties
        assert (each["decided"] == wanted["whole"]).mean() < 0.95


def test_influence_says_to_what_images_were_reduced(source: str) -> None:
    config = InfluenceConfig(
        source=(source,), data="digits", feature_cache="off", num_train=40, num_test=20
    )
    assert analyze_influence.prepare(config, source).target.downscale == REDUCED


# ---- unreadable images ----


def photos(folder: Path, bad: int) -> Path:
    """Ten test images of two classes, the first `bad` of each unreadable."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for i in range(5):
                file = folder / split / name / f"{i}.png"
                pixels = draw.integers(0, 256, (16, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(file)
                if i < bad and split == "val":
                    file.write_bytes(b"not a picture")
    return folder


@pytest.fixture
def of_two(tmp_path: Path) -> str:
    file = tmp_path / "two.safetensors"
    model = create_model("resnet8_cifar", 2, seed=0)
    save_model(model, file, {"resolution": SIDE, "classes": list(CLASSES)})
    return str(file)


def test_unreadable_images_of_an_inversion_are_counted(
    of_two: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = str(photos(tmp_path / "data", bad=1))
    config = few(InversionConfig, of_two, data=data, num_images=5, num_steps=1)
    analysis = analyze_inversion.prepare(config, of_two)
    found = analysis.compute(Portions(tmp_path / "p"))
    assert found.arrays["targets"].shape[0] == found.numbers[0].n == 4
    assert "2 of 10 test images cannot be read: 4 are targets, not 5" in caplog.text
    assert caplog.text.count("bad image") == 2
    assert "0.png" in caplog.text


def test_unreadable_starting_images_are_named(
    of_two: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = str(photos(tmp_path / "data", bad=1))
    config = few(
        VisualizationConfig,
        of_two,
        data=data,
        num_images=10,
        start="images",
        num_steps=1,
    )
    analysis = analyze_visualization.prepare(config, of_two)
    found = analysis.compute(Portions(tmp_path / "p"))
    assert found.arrays["starts"].shape[1] == found.numbers[0].n == 8
    assert caplog.text.count("bad image") == 2


def test_a_gaussian_of_one_readable_image_is_refused(
    of_two: str, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "data", bad=0)
    for i in range(4):
        (folder / "train" / "one" / f"{i}.png").write_bytes(b"not a picture")
    config = few(
        VisualizationConfig, of_two, data=str(folder), classes=("one",),
        start="gaussian", num_steps=1,
    )  # fmt: skip
    analysis = analyze_visualization.prepare(config, of_two)
    with pytest.raises(DataError, match=r"1 training images of class one that can be"):
        analysis.compute(Portions(tmp_path / "p"))


@pytest.mark.parametrize("kind", ["gradients", "inversion", "visualization", "shift"])
def test_without_any_readable_image(of_two: str, tmp_path: Path, kind: str) -> None:
    data = str(photos(tmp_path / "data", bad=5))
    module, config, more = {
        "gradients": (analyze_gradients, GradientsConfig, {}),
        "inversion": (analyze_inversion, InversionConfig, {"num_steps": 1}),
        "visualization": (
            analyze_visualization,
            VisualizationConfig,
            {"start": "images"},
        ),
        "shift": (analyze_shift, ShiftConfig, {"corruptions": ("none",)}),
    }[kind]
    given = few(config, of_two, data=data, **more)
    with pytest.raises(DataError, match=r"can be (read|decoded)"):
        module.prepare(given, of_two).compute(Portions(tmp_path / "p"))
