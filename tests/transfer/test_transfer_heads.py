"""Heads on fixed features: many at once are what each would be alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fastadv.data import ArraySet, make_loader
from fastadv.errors import DataError
from fastadv.models.normalized import seeded_init
from fastadv.training.optimizer_config import scheduled
from fastadv.transfer.features import Features
from fastadv.transfer.heads import LinearHead, choose_head, fit_exact, fit_sgd
from fastadv.transfer.protocols import Procedure

CLASSES, DEPTH = 3, 21
EPOCHS = 4


def _procedure(*lrs: float) -> Procedure:
    return Procedure(
        lrs=lrs, epochs=EPOCHS, batch_size=8, momentum=0.9, weight_decay=5e-3
    )


def _features(n: int = 60, classes: int = CLASSES) -> Features:
    draw = np.random.default_rng(5)
    labels = np.arange(n) % classes
    centres = draw.normal(size=(classes, DEPTH))
    values = centres[labels] + draw.normal(size=(n, DEPTH)) + 3
    return Features(values.astype(np.float32), labels)


def _close(ours: LinearHead, weight: Any, bias: Any) -> None:
    np.testing.assert_allclose(ours.weight, weight, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(ours.bias, bias, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_heads_at_once_equal_heads_one_by_one(threads: int) -> None:
    features, seeds, lrs = _features(), (3, 0, 11), (0.1, 0.01, 1e-3, 0.03)
    draw = np.random.default_rng(0)
    rows = np.stack([np.sort(draw.permutation(60)[:41]) for _ in seeds])
    torch.set_num_threads(threads)  # learning rates are shared out among them
    together = fit_sgd(features, rows, CLASSES, seeds, _procedure(*lrs))
    assert torch.get_num_threads() == threads
    assert [len(heads) for heads in together] == [4, 4, 4]
    for s, seed in enumerate(seeds):
        for i, lr in enumerate(lrs):
            [[alone]] = fit_sgd(
                features, rows[s : s + 1], CLASSES, (seed,), _procedure(lr)
            )
            _close(together[s][i], alone.weight, alone.bias)
    # Neither seed nor learning rate is ignored.
    assert not np.allclose(together[0][0].weight, together[1][0].weight, atol=1e-3)
    assert not np.allclose(together[0][0].weight, together[0][1].weight, atol=1e-3)


@pytest.mark.parametrize("n", [41, 40, 47])  # the last batch: one joins, none, seven
def test_a_head_is_what_torch_trains_on_the_batches_of_a_loader(n: int) -> None:
    features, seed, lr = _features(), 4, 0.05
    rows = np.sort(np.random.default_rng(1).permutation(60)[:n])
    pixels = np.zeros((n, 4, 4, 3), np.uint8)
    images = ArraySet(pixels, features.labels[rows], "abc", name="x", split="train")
    loader = make_loader(images, batch_size=8, resolution=4, train=True, seed=seed)
    with seeded_init(seed):
        layer = torch.nn.Linear(DEPTH, CLASSES)
    optimizer = torch.optim.SGD(
        layer.parameters(), lr=lr, momentum=0.9, weight_decay=5e-3
    )
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = scheduled(lr, "step", epoch, EPOCHS)
        for batch in loader:
            x = torch.from_numpy(features.values[rows[batch.indices.numpy()]])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(x), batch.labels).backward()
            optimizer.step()
    [[head]] = fit_sgd(features, rows[None], CLASSES, (seed,), _procedure(lr))
    _close(head, layer.weight.detach().numpy(), layer.bias.detach().numpy())


@pytest.mark.parametrize("classes", [2, 3])
def test_the_exact_head_says_what_scikit_learn_says(classes: int) -> None:
    train, val = _features(60, classes), _features(30, classes)
    head, strength, value = choose_head(fit_exact(train, classes, 0), val, "top1")
    scaler = StandardScaler().fit(train.values)
    theirs = LogisticRegression(C=strength, max_iter=1000)
    theirs.fit(scaler.transform(train.values), train.labels)
    wanted = theirs.predict_proba(scaler.transform(val.values))
    logits = torch.from_numpy(val.values @ head.weight.T + head.bias)
    np.testing.assert_allclose(logits.softmax(1), wanted, atol=1e-4)
    assert value == pytest.approx((wanted.argmax(1) == val.labels).mean())


def test_a_class_never_seen_is_never_said() -> None:
    train = _features()
    some = train.labels != 1
    part = Features(train.values[some], train.labels[some])
    head, _, _ = choose_head(fit_exact(part, CLASSES, 0), part, "top1")
    accuracy = head.evaluate(train).clean
    assert accuracy.correct.tolist()[1] == 0
    assert accuracy.total.tolist() == [20, 20, 20]
    assert accuracy.correct.tolist()[0] > 15
    one = Features(train.values[:1], train.labels[:1])
    with pytest.raises(DataError, match="are of 1 class; a head needs two"):
        fit_exact(one, CLASSES, 0)
