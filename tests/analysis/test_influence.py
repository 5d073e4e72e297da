"""Influence through the last layer, against autograd, retraining and a library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from torch.func import functional_call, hessian

from fastadv.analysis import influence as module
from fastadv.analysis.analyze_influence import heat_map, most_influential
from fastadv.analysis.influence import LastLayer, influence


def problem(n: int, d: int, classes: int, seed: int = 0, scale: float = 1.0):
    """Embeddings in clusters, labels, and a linear layer."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = rng.standard_normal((classes, d))
    h = scale * (centres[labels] + rng.standard_normal((n, d)))
    return h, labels, rng.standard_normal((classes, d)), rng.standard_normal(classes)


def autograd_parts(h, labels, weight, bias) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of each image [n, C (D + 1)] and the Hessian, by autograd."""
    layer = torch.nn.Linear(h.shape[1], len(weight), dtype=torch.float64)
    x, y = torch.tensor(h), torch.tensor(labels)
    flat = torch.tensor(np.column_stack([weight, bias]).ravel())

    def losses(parameters: torch.Tensor) -> torch.Tensor:
        both = parameters.view(len(weight), -1)
        given = {"weight": both[:, :-1], "bias": both[:, -1]}
        logits = functional_call(layer, given, (x,))
        return torch.nn.functional.cross_entropy(logits, y, reduction="none")

    gradients = torch.func.jacrev(losses)(flat)
    return gradients.numpy(), hessian(lambda p: losses(p).sum())(flat).numpy()


@pytest.mark.parametrize(("n", "d", "classes"), [(40, 5, 3), (7, 12, 4), (30, 4, 2)])
@pytest.mark.parametrize("damping", [None, 0.3])
def test_equals_autograd(n: int, d: int, classes: int, damping: float | None) -> None:
    """Also with fewer images than embedding dimensions, and for two classes."""
    h, labels, weight, bias = problem(n, d, classes)
    rows = np.arange(n) < n - n // 3
    gradients, _ = autograd_parts(h, labels, weight, bias)
    _, matrix = autograd_parts(h[rows], labels[rows], weight, bias)
    if damping is None:
        inverse = np.linalg.pinv(matrix, rcond=0.05, hermitian=True)
    else:
        inverse = np.linalg.inv(matrix + damping * np.eye(len(matrix)))
    expected = gradients[~rows] @ inverse @ gradients[rows].T
    layers = [
        LastLayer.from_embeddings(h[part], labels[part], weight, bias)
        for part in (rows, ~rows)
    ]
    found = influence(*layers, damping=damping)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_lanczos_equals_the_whole_decomposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = LastLayer.from_embeddings(*problem(300, 80, 5, scale=0.3))
    whole = influence(layer, layer, cutoff=0.2)
    monkeypatch.setattr(module, "_DENSE", 10)
    called = []
    times = module.Hessian.times
    monkeypatch.setattr(
        module.Hessian, "times", lambda *a: called.append(1) or times(*a)
    )
    np.testing.assert_allclose(
        influence(layer, layer, cutoff=0.2), whole, rtol=1e-6, atol=1e-9
    )
    assert called


def test_predicts_what_retraining_without_an_image_does() -> None:
    """Rank correlation with leave-one-out retraining of a penalised head."""
    h, labels, _, _ = problem(90, 6, 3, seed=1)
    train, test = np.arange(60), np.arange(60, 90)
    penalty = 0.5

    def fit(rows: np.ndarray) -> LogisticRegression:
        # An intercept would not be penalised; a constant input is.
        inputs = np.column_stack([h, np.ones(len(h))])
        model = LogisticRegression(
            C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=5000
        )
        return model.fit(inputs[rows], labels[rows])

    def losses(model: LogisticRegression) -> np.ndarray:
        inputs = np.column_stack([h, np.ones(len(h))])[test]
        chosen = model.predict_log_proba(inputs)
        return -chosen[np.arange(len(test)), labels[test]]

    model = fit(train)
    layers = [
        LastLayer.from_embeddings(
            h[rows], labels[rows], model.coef_[:, :-1], model.coef_[:, -1]
        )
        for rows in (train, test)
    ]
    found = influence(*layers, damping=penalty)
    before = losses(model)
    truth = np.stack([losses(fit(np.delete(train, i))) - before for i in train], 1)
    correlations = [spearmanr(found[t], truth[t]).statistic for t in range(len(test))]
    # The lower end of a 95 % interval of the mean over test images.
    error = np.std(correlations, ddof=1) / np.sqrt(len(correlations))
    assert np.mean(correlations) - 1.96 * error > 0.97


def test_equals_dattri() -> None:
    """On a case that autograd handles, against the maintained library."""
    dattri = pytest.importorskip("dattri", reason="needs dattri")
    from dattri.algorithm.influence_function import IFAttributorExplicit
    from dattri.task import AttributionTask

    assert dattri
    h, labels, weight, bias = problem(120, 20, 5, seed=2)
    layer = torch.nn.Linear(20, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))

    def loss(parameters, data):
        x, y = data
        logits = functional_call(layer, parameters, (x.reshape(-1, 20),))
        return torch.nn.functional.cross_entropy(logits, y.reshape(-1))

    task = AttributionTask(loss_func=loss, model=layer, checkpoints=layer.state_dict())
    sets = [
        torch.utils.data.TensorDataset(
            torch.tensor(h[rows]), torch.tensor(labels[rows])
        )
        for rows in (slice(0, 100), slice(100, 120))
    ]
    loaders = [torch.utils.data.DataLoader(each, batch_size=len(each)) for each in sets]
    penalty = 1e-2
    attributor = IFAttributorExplicit(task, regularization=penalty)
    attributor.cache(loaders[0])
    theirs = attributor.attribute(*loaders).T.detach().numpy()
    layers = [
        LastLayer.from_embeddings(h[r], labels[r], weight, bias)
        for r in (slice(0, 100), slice(100, 120))
    ]
    # Their Hessian is that of the mean loss.
    ours = influence(*layers, damping=100 * penalty)
    np.testing.assert_allclose(100 * ours, theirs, rtol=1e-5, atol=1e-7)


def test_removing_a_duplicate_counts_for_each_copy() -> None:
    h, labels, weight, bias = problem(30, 4, 3)
    twice = np.append(np.arange(30), 7)
    layer = LastLayer.from_embeddings(h[twice], labels[twice], weight, bias)
    found = influence(layer, layer)
    np.testing.assert_allclose(found[:, 7], found[:, 30], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": np.full((30, 4), np.nan)}, "30 of 30 embeddings are not finite"),
        ({"labels": np.full(30, 3)}, "classes 0 to 2"),
        ({"weight": np.ones((3, 5))}, "do not fit"),
    ],
)
def test_bad_embeddings(change, message: str) -> None:
    h, labels, weight, bias = problem(30, 4, 3)
    given = {"h": h, "labels": labels, "weight": weight} | change
    with pytest.raises(ValueError, match=message):
        LastLayer.from_embeddings(given["h"], given["labels"], given["weight"], bias)


def test_separable_data_has_no_influence() -> None:
    """A network that is certain of every image has a Hessian of zero."""
    h = problem(30, 4, 3)[0]
    weight = 1e4 * np.eye(3, 4)
    certain = LastLayer.from_embeddings(h, (h @ weight.T).argmax(1), weight)
    with pytest.raises(ValueError, match="certain of every training image"):
        influence(certain, certain)
    with pytest.raises(ValueError, match="cutoff=1"):
        influence(certain, certain, cutoff=1)
    with pytest.raises(ValueError, match="damping=0"):
        influence(certain, certain, damping=0)


def test_summaries() -> None:
    found = np.array([[0.0, 2.0, 2.0, -1.0], [4.0, 0.0, 0.0, 0.0]])
    assert most_influential(found, 3).tolist() == [[1, 2, 0], [0, 1, 2]]
    picture = heat_map(found, np.array([1, 0]), np.array([1, 0, 0, 0]))
    # Sorted by class: the second test image first, the first training image last.
    np.testing.assert_allclose(picture, [[0, 0, 0, 1], [1, 1, -0.5, 0]])
    large = heat_map(np.ones((1000, 350)), np.zeros(1000, int), np.zeros(350, int))
    assert large.shape == (200, 200)
    np.testing.assert_allclose(large, 1)
