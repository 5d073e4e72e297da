"""Similarity of representations: invariances, independence, and a library."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from torch import Tensor

from fastadv.analysis.similarity import SVCCA, LinearCKA
from fastadv.models import activations, create_model

MEASURES = [LinearCKA, SVCCA, lambda: SVCCA(1.0)]


def compare(measure, x: Tensor, y: Tensor, batch: int = 64) -> float:
    for ours, theirs in zip(x.split(batch), y.split(batch), strict=True):
        measure.update({"x": ours}, {"y": theirs})
    return float(measure.matrix()[0, 0])


@pytest.mark.parametrize("make", MEASURES)
@pytest.mark.parametrize("batch", [32, 256, 33])  # the last of 33 leaves two images
def test_one_for_itself_rotated_and_scaled(make, batch: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1058, 12) @ torch.randn(12, 12)
    rotation = torch.linalg.qr(torch.randn(12, 12))[0]
    assert compare(make(), x, x, batch) == pytest.approx(1, abs=1e-6)
    turned = 7 * x @ rotation + 3
    assert compare(make(), x, turned, batch) == pytest.approx(1, abs=1e-6)


def test_only_canonical_correlations_ignore_a_linear_map() -> None:
    torch.manual_seed(0)
    x = torch.randn(500, 6)
    y = x @ torch.diag(torch.tensor([1.0, 2, 4, 8, 16, 32]))
    assert compare(SVCCA(1.0), x, y) == pytest.approx(1, abs=1e-6)
    assert compare(LinearCKA(), x, y) < 0.9


@pytest.mark.parametrize("n", [32, 256])
def test_independent_noise_is_not_similar(n: int) -> None:
    """Unbiased: over many draws the mean is zero to within its own error."""
    generator = torch.Generator().manual_seed(n)
    found = [
        compare(
            LinearCKA(),
            torch.randn(2 * n, 20, generator=generator),
            torch.randn(2 * n, 40, generator=generator),
            n,
        )
        for _ in range(200)
    ]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert np.std(found) < 1.5 / n


def test_the_batch_size_hardly_matters() -> None:
    torch.manual_seed(1)
    x = torch.randn(2048, 20)
    y = x @ torch.randn(20, 20) + 3 * torch.randn(2048, 20)
    found = [compare(LinearCKA(), x, y, batch) for batch in (32, 128, 2048)]
    assert np.ptp(found) < 0.01


def test_mean_canonical_correlation_equals_scikit_learn() -> None:
    torch.manual_seed(2)
    x = torch.randn(400, 5)
    y = x[:, :4] @ torch.randn(4, 4) + 2 * torch.randn(400, 4)
    cca = CCA(4, scale=False, tol=1e-12, max_iter=100000).fit(x.numpy(), y.numpy())
    scores = cca.transform(x.numpy(), y.numpy())
    expected = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(*(s.T for s in scores), strict=True)
    ]
    found = compare(SVCCA(1.0), x, y)
    assert found == pytest.approx(np.mean(expected), abs=1e-5)


def test_svcca_keeps_the_leading_components() -> None:
    """Two components hold more than 99 % of the variance; the third differs."""
    torch.manual_seed(3)
    shared = torch.randn(500, 2) * 10
    x, y = (torch.cat([shared, 0.1 * torch.randn(500, 1)], 1) for _ in range(2))
    assert compare(SVCCA(0.99), x, y) == pytest.approx(1, abs=1e-6)
    assert compare(SVCCA(1.0), x, y) < 0.75


def test_a_real_pair_equals_pytorch_cka() -> None:
    library = pytest.importorskip("cka", reason="needs pytorch-cka")
    models = [create_model("resnet8_cifar", 10, seed=seed).eval() for seed in (0, 1)]
    names = ["layer1", "layer2", "layer3"]
    # In float64, since the library does not centre: here means are most of the signal.
    models = [model.double() for model in models]
    batches = list(torch.rand(40, 3, 32, 32, dtype=torch.float64).split(20))
    ours = LinearCKA()
    with torch.no_grad():
        for batch in batches:
            ours.update(*(activations(m, m.normalize(batch), names) for m in models))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.cat(batches)), batch_size=20
    )
    nets = [torch.nn.Sequential(torch.nn.Identity(), m) for m in models]
    layers = [f"1.net.{name}" for name in names]
    [theirs] = library.compute_cka(*nets, loader, layers=layers, progress=False)
    np.testing.assert_allclose(ours.matrix(), theirs.numpy(), atol=1e-5)


def test_layers_of_any_shape() -> None:
    torch.manual_seed(4)
    maps, tokens = torch.randn(64, 3, 4, 4), torch.randn(64, 7, 5)
    for make in MEASURES:
        measure = make()
        measure.update({"a": maps, "b": tokens}, {"c": tokens, "d": maps, "e": maps})
        found = measure.matrix()
        assert found.shape == (2, 3)
        assert found[0, 1:] == pytest.approx(1, abs=1e-6)
        assert found[1, 0] == pytest.approx(1, abs=1e-6)
        assert found[0, 0] < 0.9


@pytest.mark.parametrize("make", MEASURES)
def test_bad_activations_name_the_layer(make) -> None:
    x = torch.randn(40, 3)
    bad = x.clone()
    bad[5, 1] = float("nan")
    with pytest.raises(ValueError, match="activations of second are not finite"):
        make().update({"first": x}, {"second": bad})
    with pytest.raises(ValueError, match="'second': 39"):
        make().update({"first": x}, {"second": x[1:]})
    measure = make()
    measure.update({"first": x}, {"dead": torch.ones(40, 2)})
    with pytest.raises(ValueError, match="outputs of dead do not differ"):
        measure.matrix()
    with pytest.raises(ValueError, match="needs"):
        make().matrix()


def test_too_few_images() -> None:
    few = torch.randn(30, 40)
    measure = SVCCA(1.0)
    measure.update({"a": few}, {"b": torch.randn(30, 40)})
    with pytest.raises(ValueError, match=r"at least 59 images, there are 30"):
        measure.matrix()
    cka = LinearCKA()
    cka.update({"a": few[:3]}, {"b": few[:3]})
    with pytest.raises(ValueError, match="at least four images"):
        cka.matrix()


@pytest.mark.parametrize("sizes", list(itertools.permutations((10, 3, 20))))
def test_small_batches_join_the_batch_before(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(5)
    x, y = torch.randn(33, 6), torch.randn(33, 6)
    measure = LinearCKA()
    for a, b in zip(x.split(list(sizes)), y.split(list(sizes)), strict=True):
        measure.update({"a": a}, {"b": b})
    if sizes[0] == 3:
        joined = [sizes[0] + sizes[1], sizes[2]]
    elif sizes[1] == 3:
        joined = [sizes[0] + 3, sizes[2]]
    else:
        joined = [sizes[0], sizes[1] + 3]
    expected = LinearCKA()
    for a, b in zip(x.split(joined), y.split(joined), strict=True):
        expected.update({"a": a}, {"b": b})
    assert measure.matrix() == pytest.approx(expected.matrix(), abs=1e-12)
