"""The cache of features: what is found is what would have been computed, or not found."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import environment
from torchvision import transforms

from fastadv.data import (
    ArraySet,
    BadImage,
    ImageSet,
    LoaderOptions,
    make_loader,
    open_dataset,
)
from fastadv.data.sets.subsets import Downscaled
from fastadv.models import NormalizedModel, create_model
from fastadv.preparation import Preparation
from fastadv.transfer import features as module
from fastadv.transfer.features import FeatureCache, Features, extract, feature_key


def _model(seed: int = 0) -> NormalizedModel:
    return create_model("resnet8_cifar", 3, seed=seed)


def _folder(root: Path, **changes: int) -> Path:
    """Six noisy bitmaps: equal sizes in bytes, whatever the pixels."""
    for split in ("train", "val"):
        for label in "ab":
            for i in range(3):
                path = root / split / label / f"{i}.bmp"
                path.parent.mkdir(parents=True, exist_ok=True)
                usual = 10 * ord(label) + i + 5 * (split == "val")
                seed = changes.get(f"{split}_{label}{i}", usual)
                pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def _options(**options: Any) -> LoaderOptions:
    defaults: dict[str, Any] = {"batch_size": 4, "resolution": 16, "train": False}
    return LoaderOptions(**(defaults | {"workers": 0} | options))


def _get(
    folder: Path | None, images: ImageSet, seed: int = 0, **options: Any
) -> Features:
    return FeatureCache(folder).features(
        _model(seed), images, _options(**options), "test"
    )


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes through a network that were made."""
    made: list[str] = []

    def counting(*arguments: Any) -> Features:
        made.append(arguments[-1])
        return extract(*arguments)

    monkeypatch.setattr(module, "extract", counting)
    return made


def test_what_is_found_is_bit_identical(tmp_path: Path, passes: list[str]) -> None:
    images = open_dataset("digits").test
    cold, fresh = _get(tmp_path / "c", images), _get(None, images)
    assert len(passes) == 2
    found = _get(tmp_path / "c", images)
    assert len(passes) == 2
    assert isinstance(found.values, np.memmap)  # nothing is read until it is used
    assert found.values.dtype == np.float32
    for other in (cold, fresh):
        assert found.values.tobytes() == other.values.tobytes()
        assert np.array_equal(found.labels, other.labels)
    # And what they are is what the model says, but for the folding of BatchNorm.
    options = vars(_options(batch_size=500))
    pixels = next(iter(make_loader(images, **options))).images / 255
    model = _model().eval()
    with torch.no_grad():
        wanted = model.features(pixels).numpy()
    np.testing.assert_allclose(found.values, wanted, atol=1e-4)
    plain = np.load(
        next(p for p in (tmp_path / "c").glob("*.npy") if ".bad" not in p.name)
    )
    assert np.array_equal(plain, found.values)


@pytest.mark.parametrize("damage", ["altered", "cut", "empty"])
@pytest.mark.parametrize("part", ["values", "bad"])
def test_a_damaged_file_is_made_again(
    damage: str, part: str, tmp_path: Path, passes: list[str]
) -> None:
    images = open_dataset("digits").test
    first = _get(tmp_path, images)
    [file] = [
        p for p in tmp_path.glob("*.npy") if (".bad" in p.name) == (part == "bad")
    ]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    cut = {"altered": len(data), "cut": len(data) // 2, "empty": 0}[damage]
    file.write_bytes(data[:cut])
    again = _get(tmp_path, images)
    assert len(passes) == 2
    assert again.values.tobytes() == first.values.tobytes()
    _get(tmp_path, images)
    assert len(passes) == 2  # it is whole now


_WRITER = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from fastadv.data import LoaderOptions, open_dataset
from fastadv.models import create_model
from fastadv.transfer import features

real = features.extract

def said(*arguments):
    print("extracting", flush=True)
    time.sleep(600 if "hangs" in sys.argv else 0)
    return real(*arguments)

features.extract = said
model = create_model("resnet8_cifar", 3, seed=0)
images = open_dataset("digits").test
print("ready", flush=True)
sys.stdin.readline()
for number in range(4):
    folder = Path(sys.argv[1]) / str(number)
    options = LoaderOptions(batch_size=50, resolution=16, train=False)
    found = features.FeatureCache(folder).features(model, images, options, "x")
    print(found.values.tobytes().hex()[:64], float(found.values.sum()))
"""


def _writers(*words: str) -> list[subprocess.Popen[str]]:
    """Two processes that want the same features, both kept waiting until both can start.

    Args:
        *words: of both: the folder; of the first also what else follows.
    """
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, *given],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for given in (words, words[:1])
    ]
    for process in running:
        assert _line(process) == "ready"
    return running


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_at_once_compute_once(tmp_path: Path) -> None:
    running = _writers(str(tmp_path))
    for process in running:
        _go(process)
    printed = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sum(text.count("extracting") for text in printed) == 4
    first, second = (
        [line for line in text.splitlines() if line.count(" ") == 1] for text in printed
    )
    assert len(first) == 4
    assert first == second
    images = open_dataset("digits").test
    for number in range(4):
        names = sorted(p.name for p in (tmp_path / str(number)).glob("*.npy"))
        key = feature_key(_model(), images, _options())
        assert names == [f"{key}.bad.npy", f"{key}.npy"]
        found = _get(tmp_path / str(number), images)
        assert isinstance(found.values, np.memmap)
        assert found.values.tobytes().hex()[:64] == first[0].split()[0]


def test_one_that_was_killed_keeps_nobody_waiting(tmp_path: Path) -> None:
    killed, waiting = _writers(str(tmp_path), "hangs")
    try:
        _go(killed)
        assert _line(killed) == "extracting"
        _go(waiting)
        assert _line(waiting) == "x: another process computes them; waiting"
        killed.kill()
        printed = waiting.communicate(timeout=100)[0]
    finally:
        for process in (killed, waiting):
            process.kill()
            process.wait()
    assert waiting.returncode == 0
    assert printed.count("extracting") == 4


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_enough(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.lockf", refuse)
    images = open_dataset("digits").test
    first, found = (_get(tmp_path, images) for _ in range(2))
    assert len(passes) == 1
    assert found.values.tobytes() == first.values.tobytes()


def test_content_is_the_key(tmp_path: Path, passes: list[str]) -> None:
    cache = tmp_path / "cache"
    here = open_dataset(_folder(tmp_path / "here")).train
    _get(cache, here)
    moved = open_dataset(_folder(tmp_path / "moved")).train
    _get(cache, moved)
    assert len(passes) == 1  # the same images elsewhere
    other = open_dataset(_folder(tmp_path / "other", train_a1=99)).train
    # Same names, same sizes: what the cheap fingerprint sees.
    assert os.path.getsize(tmp_path / "other" / "train" / "a" / "1.bmp") == (
        os.path.getsize(tmp_path / "here" / "train" / "a" / "1.bmp")
    )
    changed = _get(cache, other)
    assert len(passes) == 2
    rows = np.abs(changed.values - _get(None, here).values).max(axis=1) > 1e-3
    assert rows.tolist() == [False, True, False, False, False, False]
    del passes[:]
    for options in ({"seed": 1}, {"resolution": 32}, {"augment": "none"}):
        _get(cache, here, **options)  # type: ignore[arg-type]
    _get(cache, Downscaled(here, 8))
    _get(cache, open_dataset(tmp_path / "here").test)
    assert len(passes) == 5  # other weights, sizes, crops, details, another split
    _get(cache, Downscaled(here, 8))
    assert len(passes) == 5


def test_features_are_kept_by_how_images_are_prepared(
    tmp_path: Path, passes: list[str]
) -> None:
    images = open_dataset(_folder(tmp_path / "data")).train  # a folder: zoomed usually
    usual = _get(tmp_path / "c", images)
    keys = {feature_key(_model(), images, _options())}
    for how in (
        Preparation(resize=18, crop=16),
        Preparation(resize=17, crop=16),
        Preparation(resize=18, crop=16, interpolation="bicubic"),
        Preparation(resize=18, crop=16, squash=True),
    ):
        _get(tmp_path / "c", images, preparation=how)
        keys.add(feature_key(_model(), images, _options(preparation=how)))
    assert len(passes) == len(keys) == 4  # the first of them is the usual way
    same = _get(tmp_path / "c", images, preparation=Preparation(resize=18, crop=16))
    assert same.values.tobytes() == usual.values.tobytes()


def test_bad_images_are_remembered(tmp_path: Path, passes: list[str]) -> None:
    root = _folder(tmp_path / "data")
    (root / "train" / "a" / "1.bmp").write_bytes(b"BM no image")
    images = open_dataset(root).train
    first, found = (_get(tmp_path / "c", images) for _ in range(2))
    assert len(passes) == 1
    assert [name for name, _ in found.bad_images] == ["data:train/a/1.bmp"]
    assert found.bad_images == first.bad_images
    # A class mate stands in for it where a network trains; none is judged twice.
    for features in (first, found):
        twins = (features.values == features.values[1]).all(axis=1)
        assert np.flatnonzero(twins).tolist() in ([0, 1], [1, 2])
        assert features.stands_in is not None
        assert np.flatnonzero(features.stands_in).tolist() == [1]
        judged = features.judged()
        assert np.array_equal(judged.values, features.values[[0, 2, 3, 4, 5]])
        assert judged.judged() is judged
    with pytest.raises(BadImage, match=r"train/a/1\.bmp"):
        _get(tmp_path / "c", images, on_bad_image="fail")


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    found = _get(tmp_path / "file" / "cache", open_dataset("digits").test)
    assert found.values.shape == (500, 64)
    assert "choose another `feature_cache`" in caplog.text
    assert FeatureCache.at("off").folder is None
    assert (
        FeatureCache.at("auto").folder == Path(os.environ["FASTADV_CACHE"]) / "features"
    )


def test_downscaling_is_torchvisions() -> None:
    draw = np.random.default_rng(2)
    pixels = draw.integers(0, 255, (1, 40, 60, 3)).astype(np.uint8)
    base = ArraySet(pixels, [0], ["a"], name="x", split="train")
    small = Downscaled(base, 16)
    wanted = transforms.Resize(16)(Image.fromarray(pixels[0]))
    assert small.load(0).shape == (16, 24, 3)
    assert np.abs(small.load(0).astype(int) - np.asarray(wanted, int)).max() <= 1
    assert small.fingerprint != Downscaled(base, 8).fingerprint != base.fingerprint
