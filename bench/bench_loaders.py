"""Loaders: images per second of random resized crops, against torch's DataLoader.

    python bench/bench_loaders.py [--small tiny-imagenet.zip] [--images 192] [--repeats 5]

`photos` are JPEGs of 500 x 375 at quality 90, delivered at 224 px. They are synthetic:
fields with the 1/f spectrum of photographs and sensor grain, 115 KiB each (printed).
`small` is an archive of small images,
delivered at 64 px; left out without --small.

The peer is what its users write: torchvision's ImageFolder (for an archive, its files
extracted), RandomResizedCrop, RandomHorizontalFlip and PILToTensor (a fourth of the bytes
of ToTensor) in a DataLoader with two worker processes. Ours deliver uint8 batches of the
same size. `colours` adds the published colour jitter and lighting to ours, which the peer
goes without. A repeat is an epoch; workers and pipelines stay alive between epochs, as
they do in training.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved, ratio

from fastadv.data import Batch, ImageSet, make_loader, open_dataset, subset
from fastadv.data.loading.dali_loader import declined_reason
from fastadv.data.loading.loader import LoaderOptions
from fastadv.data.sets.subsets import files_and_positions

BATCH, WORKERS = 64, 2
HEIGHT, WIDTH, QUALITY = 375, 500, 90
CLASSES = 8


def photo(generator: np.random.Generator) -> np.ndarray:
    """A field with amplitudes 1/f in each channel, channels correlated, and grain."""
    rows = np.fft.fftfreq(HEIGHT)[:, None]
    columns = np.fft.rfftfreq(WIDTH)[None, :]
    falling = 1 / np.maximum(np.hypot(rows, columns), 1 / WIDTH)
    shared, *own = (
        np.fft.irfft2(
            falling * np.fft.rfft2(generator.normal(size=(HEIGHT, WIDTH))),
            s=(HEIGHT, WIDTH),
        )
        for _ in range(4)
    )
    channels = [shared / shared.std() + 0.3 * c / c.std() for c in own]
    grain = generator.normal(0, 5, (HEIGHT, WIDTH, 1))
    pixels = 120 + 50 * np.stack(channels, 2) + grain
    return pixels.clip(0, 255).astype(np.uint8)


def write_photos(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for i in range(count):
        for split in ("train", "val") if i < CLASSES else ("train",):
            place = folder / split / str(i % CLASSES)
            place.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(photo(generator))
            image.save(place / f"{i}.jpg", quality=QUALITY)


def write_files(images: ImageSet, folder: Path) -> None:
    """Extract the encoded files of a subset, for the peer."""
    found = files_and_positions(images)
    if found is None:
        raise SystemExit("--small has to be an archive or folder of files")
    base, positions = found
    for i, index in enumerate(positions.tolist()):
        place = folder / str(images.labels[i])
        place.mkdir(parents=True, exist_ok=True)
        name = Path(base.members[index]).name
        (place / f"{i}-{name}").write_bytes(base.read(index))


def peer(folder: Path, side: int) -> Callable[[], object]:
    crop = v2.RandomResizedCrop(side, antialias=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.PILToTensor()])
    loader = DataLoader(
        ImageFolder(str(folder), transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return functools.partial(consume, loader)


def ours(images: ImageSet, backend: str, side: int, **options) -> Callable[[], object]:
    loader = make_loader(
        images,
        backend=backend,
        batch_size=BATCH,
        resolution=side,
        train=True,
        augment="rrc",
        workers=WORKERS,
        **options,
    )
    return functools.partial(consume, loader)


def consume(loader) -> int:
    """Take every batch, as a training step would, and touch it."""
    return sum(int(_images(batch)[-1, 0, 0, 0]) for batch in loader)


def _images(batch) -> torch.Tensor:
    return batch.images if isinstance(batch, Batch) else batch[0]


def bench(
    what: str, images: ImageSet, folder: Path, side: int, options, results: Results
) -> None:
    colours = {"color_jitter": 0.1, "lighting": 0.05}
    cases = {
        "DataLoader": peer(folder, side),
        "torchvision": ours(images, "torchvision", side),
        "memory": ours(images, "memory", side),
        "memory, colours": ours(images, "memory", side, **colours),
    }
    reason = declined_reason(
        images, LoaderOptions(batch_size=BATCH, resolution=side, train=True)
    )
    if reason is None:
        cases["dali"] = ours(images, "dali", side)
        cases["dali, colours"] = ours(images, "dali", side, **colours)
    else:
        print(f"dali is left out: {reason}")
    times = interleaved(cases, repeats=options.repeats, warmup=1)
    for name, timing in times.items():
        faster, low, high = ratio(times["DataLoader"], timing)
        rate = len(images) / timing.median
        results.add(
            what=what,
            side=side,
            images=len(images),
            batch=BATCH,
            workers=WORKERS,
            loader=name,
            seconds=timing.median,
            seconds_range=[round(timing.low, 4), round(timing.high, 4)],
            images_per_s=rate,
            times_dataloader=faster,
            times_dataloader_range=[round(low, 3), round(high, 3)],
            repeats=options.repeats,
        )
        print(
            f"{what} {side} px {name:22}{rate:9.0f} images/s  "
            f"{faster:6.2f} x [{low:.2f}, {high:.2f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", help="an archive or folder of small images")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--small-images", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="loaders")
    options = parser.parse_args()
    results = Results(options.name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "photos")
        write_photos(folder, options.images)
        files = list(folder.glob("train/*/*.jpg"))
        size = sum(f.stat().st_size for f in files) / len(files)
        print(f"{len(files)} photos of {size / 1024:.0f} KiB")
        photos = open_dataset(str(folder)).train
        bench("photos", photos, folder / "train", 224, options, results)
        if options.small:
            small = subset(open_dataset(options.small).train, options.small_images, 0)
            write_files(small, Path(temporary, "small"))
            bench("small", small, Path(temporary, "small"), 64, options, results)
    results.write()


if __name__ == "__main__":
    main()
