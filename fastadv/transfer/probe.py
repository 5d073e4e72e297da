"""Measurements behind the plan of a sweep: seconds per image, of each kind of pass."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

from fastadv.data import ImageSet, LoaderOptions, make_loader
from fastadv.data.sets.subsets import Subset
from fastadv.device import wait_for
from fastadv.models import NormalizedModel, create_model
from fastadv.models.view import AttackView
from fastadv.training.step import train_step
from fastadv.transfer.config import TransferConfig
from fastadv.transfer.features import Features
from fastadv.transfer.freezing import choose_trained, prepare_model
from fastadv.transfer.heads import STRENGTHS, fit_exact, fit_sgd
from fastadv.transfer.protocols import Procedure
from fastadv.transfer.tuned import make_method

_SECONDS = 1.0  # of each measurement, about
_EVAL_BATCH = 32  # images; larger batches are no faster on a CPU and slower to time
_FEW_IMAGES = 256  # of a data set, to measure how fast images are read
# The most images, classes and features that a head is fitted to for a measurement.
_FIT_IMAGES, _FIT_CLASSES, _FIT_DIMENSION = 512, 8, 512
_DECAY = 2.2


def _mean_seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the mean seconds of calls, after one that is not timed."""
    work()
    wait_for(device)
    began, calls = time.monotonic(), 0
    while calls < 2 or time.monotonic() - began < _SECONDS:
        work()
        calls += 1
        wait_for(device)
    return (time.monotonic() - began) / calls


class Probe:
    """Seconds of each kind of work on this machine, each measured once.

    Networks have random weights and passes random images, so that neither weights nor
    data are needed.

    Args:
        device: Where the networks run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._known: dict[Hashable, Any] = {}

    def _once(self, key: Hashable, measure: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = measure()
        return self._known[key]

    def _model(self, arch: str, classes: int) -> NormalizedModel:
        model = create_model(arch, classes, seed=0).to(self.device)
        return model.to(memory_format=torch.channels_last)

    def _input(self, side: int, batch: int) -> Tensor:
        images = torch.randn(batch, 3, side, side, device=self.device)
        return images.to(memory_format=torch.channels_last)

    def dimension(self, arch: str) -> int:
        """Return the length of the features of an architecture."""
        make = lambda: create_model(arch, 2, seed=0).embedding_dim  # noqa: E731
        return int(self._once(("dimension", arch), make))

    def forward(self, arch: str, side: int) -> float:
        """Return seconds per image of a frozen network in evaluation mode."""

        def measure() -> float:
            view = AttackView(self._model(arch, 10).eval())
            images = self._input(side, _EVAL_BATCH)
            with torch.no_grad():
                found = _mean_seconds(lambda: view.features(images), self.device)
            return found / _EVAL_BATCH

        return float(self._once(("forward", arch, side), measure))

    def gradient(self, arch: str, side: int) -> float:
        """Return seconds per image of one step of an attack."""

        def measure() -> float:
            view = AttackView(self._model(arch, 10).eval())
            images = self._input(side, _EVAL_BATCH).requires_grad_()

            def step() -> None:
                torch.autograd.grad(view(images).sum(), images)

            return _mean_seconds(step, self.device) / _EVAL_BATCH

        return float(self._once(("gradient", arch, side), measure))

    def train(
        self, config: TransferConfig, procedure: Procedure, arch: str, side: int
    ) -> float:
        """Return seconds per image of a training step, its attack included."""
        key = (
            *("train", arch, side, config.mode, config.k, config.precision),
            *(config.method_config, procedure.batch_size, procedure.frozen_bn),
        )

        def measure() -> float:
            model, batch = self._model(arch, 10), procedure.batch_size
            prepare_model(model, 10, 0, procedure)
            trained = choose_trained(
                model, config.mode, config.k, by_name=procedure.freeze_by_name
            )
            method = make_method(model, config.method_config, side, config.precision)
            optimizer = torch.optim.SGD(trained.parameters, 1e-4, 0.9)
            images = torch.randint(
                0, 256, (batch, 3, side, side), dtype=torch.uint8, device=self.device
            ).to(memory_format=torch.channels_last)
            labels = torch.arange(batch, device=self.device) % 10
            model.train()
            if procedure.frozen_bn == "eval":
                for module in trained.frozen:
                    module.eval()

            def step() -> None:
                train_step(model, images, labels, optimizer, method=method)

            return _mean_seconds(step, self.device) / batch

        return float(self._once(key, measure))

    def reading(
        self, key: Hashable, images: ImageSet, options: LoaderOptions
    ) -> tuple[float, float]:
        """Return seconds per image of the first and of a later pass over images.

        Args:
            key: What tells the images and the options apart.
            images: The images, of which a few are read.
            options: Options of their loader.
        """

        def passes(count: int) -> list[float]:
            chosen = np.linspace(0, len(images) - 1, count).astype(np.int64)
            loader = make_loader(Subset(images, chosen), **vars(options))
            seconds = []
            for _ in range(2):
                began = time.monotonic()
                for batch in loader:
                    batch.images.sum()
                seconds.append(time.monotonic() - began)
            return seconds

        def measure() -> list[float]:
            many = min(len(images), _FEW_IMAGES)
            few = max(many // 8, 1)
            # The difference leaves out what a loader takes to start.
            pairs = zip(passes(few), passes(many), strict=True)
            return [max(0.0, b - a) / max(many - few, 1) for a, b in pairs]

        first, later = self._once(("reading", key), measure)
        return float(first), float(later)

    def exact_fit(self, n: int, dimension: int, classes: int) -> float:
        """Return seconds of an exact fit to `n` images, per regularisation strength.

        It is measured on clustered random features of at most `_FIT_IMAGES` images,
        `_FIT_CLASSES` classes and `_FIT_DIMENSION` features. Beyond these it grows with
        the number of classes and of features, and with the power of `n` that two numbers
        of images show.
        """
        few, most = min(classes, _FIT_CLASSES), min(n, _FIT_IMAGES)
        short = min(dimension, _FIT_DIMENSION)

        def seconds(count: int) -> float:
            key = ("exact", count, short, few)
            return float(self._once(key, lambda: _time_exact(count, short, few)))

        longest = seconds(most) * classes / few * dimension / short
        if n <= most:
            return longest
        power = math.log2(seconds(most) / seconds(most // 2))
        return float(longest * (n / most) ** min(max(power, 0.8), 1.3))

    def sgd_grid(self, n: int, dimension: int, classes: int, heads: int) -> float:
        """Return seconds of an epoch over `n` images of `heads` heads by SGD."""
        count, few = min(n, _FIT_IMAGES), min(classes, _FIT_CLASSES)
        key = ("sgd", count, dimension, few, heads)

        def measure() -> float:
            features = _features(count, dimension, few)
            procedure = Procedure(epochs=1, lrs=(0.01,))
            rows = np.tile(np.arange(count), (heads, 1))
            seeds = range(heads)

            def fit() -> None:
                fit_sgd(features, rows, few, seeds, procedure, device=self.device)

            return _mean_seconds(fit, self.device) / count

        return float(self._once(key, measure)) * n * classes / few


def _features(count: int, dimension: int, classes: int) -> Features:
    """Return random features in clusters, one for each class.

    They are correlated as those of networks are, which decides how many steps a solver
    takes: variances of the principal components fall with the power `_DECAY` of their
    rank. Independent features would be fitted up to ten times as fast as real ones.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % classes
    scale = (1.0 + np.arange(dimension)) ** (-_DECAY / 2)
    centres = draw.standard_normal((classes, dimension))
    latent = (centres[labels] + 3 * draw.standard_normal((count, dimension))) * scale
    signs = draw.choice([-1.0, 1.0], dimension)
    values = np.abs(scipy.fft.dct(latent * signs, norm="ortho"))
    return Features(values.astype(np.float32), labels)


def _time_exact(count: int, dimension: int, classes: int) -> float:
    features = _features(max(count, 2), dimension, min(classes, max(count, 2)))
    began = time.monotonic()
    fit_exact(features, classes, 0)
    return (time.monotonic() - began) / len(STRENGTHS)
