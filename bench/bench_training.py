"""End to end: PGD-3 training of resnet18 at 64 px, against `robustness`, images per second.

    python bench/bench_training.py tiny-imagenet-40.zip [--images 512] [--repeats 5]

Both train on the same images with the same batch and attack (L2 1, three steps of 2/3,
eval-mode BatchNorm, last iterate), each with its own loop and the loader its users have:
fastadv.training.Trainer, and robustness.train.train_model over a DataLoader with two worker
processes. robustness asks for a GPU by name in three places; here these calls do nothing,
and its network is torchvision's. Counted is the training loop alone: from its first batch
to the end of the epoch, without validation, saving and the start of worker processes.
`clean` is fastadv without attack, `clean, torch` the same on PyTorch's own convolutions. All
take turns within one process.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, Timing, ratio

from fastadv.data import ImageSet, open_dataset, subset
from fastadv.machine import keep_freed_memory
from fastadv.training import TrainConfig, Trainer, methods

SIDE, EPS, STEPS = 64, 1.0, 3


class _Files(Dataset[tuple[Tensor, int]]):
    """An image set as users of robustness have it: PIL, torchvision transforms, floats."""

    def __init__(self, images: ImageSet) -> None:
        self.images = images
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIDE),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images.load(index))
        return self.transform(image), int(self.images.labels[index])


class _Stamped:
    """A loader that notes when its first batch came."""

    def __init__(self, loader: DataLoader[tuple[Tensor, int]]) -> None:
        self.loader, self.began = loader, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor]]:
        for number, batch in enumerate(self.loader):
            if number == 0:
                self.began = time.perf_counter()
            yield batch


class _Plain(nn.Module):
    """torchvision's network, called with what robustness passes to its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, **ignored: bool) -> Tensor:
        return self.net(x)


def robustness_epoch(images: ImageSet, options: argparse.Namespace) -> float:
    """Seconds of one epoch of robustness's own training loop."""
    from robustness import train as library
    from robustness.attacker import AttackerModel

    net = torchvision.models.resnet18(num_classes=len(images.classes))
    about = SimpleNamespace(
        mean=torch.tensor([0.485, 0.456, 0.406]),
        std=torch.tensor([0.229, 0.224, 0.225]),
    )
    model = AttackerModel(_Plain(net), about)
    loader = _Stamped(
        DataLoader(
            _Files(images), options.batch, shuffle=True, num_workers=options.workers
        )
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        args = SimpleNamespace(
            adv_train=1,
            adv_eval=0,
            epochs=1,
            lr=0.1,
            weight_decay=1e-4,
            momentum=0.9,
            step_lr=None,
            step_lr_gamma=0.1,
            custom_lr_multiplier=None,
            lr_interpolation="step",
            log_iters=1,
            save_ckpt_iters=-1,
            mixed_precision=False,
            constraint="2",
            eps=EPS,
            attack_lr=2 * EPS / 3,
            attack_steps=STEPS,
            custom_eps_multiplier=None,
            use_best=0,
            random_restarts=0,
            random_start=0,
            out_dir=folder,
            iteration_hook=lambda *_: ends.append(time.perf_counter()),
        )
        unmoved = mock.patch.multiple(
            Tensor, cuda=lambda self, *_, **__: self, create=True
        )
        module = mock.patch.object(nn.Module, "cuda", lambda self, *_: self)
        quiet = contextlib.redirect_stderr(io.StringIO())
        with unmoved, module, quiet, contextlib.redirect_stdout(io.StringIO()):
            library.train_model(args, model, (loader, [_one(images)]))
    return ends[len(loader) - 1] - loader.began


def _one(images: ImageSet) -> tuple[Tensor, Tensor]:
    """A batch for the validation it insists on; not timed."""
    pixels, label = _Files(images)[0]
    return pixels[None], torch.tensor([label])


def fastadv_epoch(options: argparse.Namespace, eps: float) -> float:
    """Seconds of one epoch of fastadv's training loop, as its own log has it."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            arch="resnet18",
            data=options.data,
            resolution=SIDE,
            num_train=options.images + options.held_out,
            val_size=options.held_out,
            batch_size=options.batch,
            norm="l2",
            eps=eps,
            num_steps=STEPS if eps else None,
            epochs=1,
            augment="rrc",
            workers=options.workers,
            device="cpu",
            out=f"{folder}/run",
        )
        # Not `fit`, which also judges the whole test set: the epoch that it runs.
        with contextlib.redirect_stderr(io.StringIO()):
            trainer = Trainer(config)
            trainer.model.train()
            batches = iter(trainer.loader)
            batch, seen = next(batches, None), 0
            began = time.perf_counter()
            losses = []
            while batch is not None:
                losses.append(trainer.update(batch).loss)
                seen += len(batch.labels)
                batch = next(batches, None)
            found = torch.stack(losses).tolist()
            seconds = time.perf_counter() - began
            trainer.run.release()
    if seen != options.images or not all(map(torch.isfinite, torch.tensor(found))):
        raise RuntimeError(f"{seen} images, losses {found}")
    return seconds


def plain_clean_epoch(options: argparse.Namespace) -> float:
    """Seconds of one epoch without attack and without our convolutions."""
    plain = mock.patch.object(
        methods, "quick_convs", return_value=contextlib.nullcontext()
    )
    with plain:
        return fastadv_epoch(options, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", help="a .zip or folder of 64 px images, split/class/file"
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--name", default="training")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="for the whole process, the peer too, as the commands do for themselves",
    )
    options = parser.parse_args()
    if options.keep_freed_memory and not keep_freed_memory():
        parser.error("--keep-freed-memory needs glibc")
    train = open_dataset(options.data, resolution=SIDE).train
    options.held_out = len(train.classes)
    images = subset(train, options.images, 0)
    cases: dict[str, Callable[[], float]] = {
        "fastadv": lambda: fastadv_epoch(options, EPS),
        "robustness": lambda: robustness_epoch(images, options),
        "clean": lambda: fastadv_epoch(options, 0.0),
        "clean, torch": lambda: plain_clean_epoch(options),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.repeats):
        for name, epoch in cases.items():
            times[name].append(epoch())
    timings = {name: Timing(tuple(seconds)) for name, seconds in times.items()}
    results = Results(options.name)
    compared_with = [("fastadv", "clean"), ("fastadv", "clean, torch")]
    compared_with += [(name, "fastadv") for name in timings if name != "fastadv"]
    for name, other in compared_with:
        timing = timings[name]
        compared, low, high = ratio(timing, timings[other])
        results.add(
            what=name,
            images=options.images,
            batch=options.batch,
            resolution=SIDE,
            eps=0.0 if name.startswith("clean") else EPS,
            workers=options.workers,
            keep_freed_memory=options.keep_freed_memory,
            images_per_s=options.images / statistics.median(timing.seconds),
            seconds=timing.median,
            seconds_range=[round(timing.low, 3), round(timing.high, 3)],
            compared_with=other,
            times_other=compared,
            times_other_range=[round(low, 3), round(high, 3)],
            repeats=options.repeats,
        )
        print(
            f"{name:12}{options.images / timing.median:8.1f} images/s   "
            f"{timing.median:.2f} s [{timing.low:.2f}, {timing.high:.2f}]   "
            f"{compared:.2f} x [{low:.2f}, {high:.2f}] of {other}"
        )
    results.write()


if __name__ == "__main__":
    main()
