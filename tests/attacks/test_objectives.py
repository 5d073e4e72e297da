"""Every objective against its formula, written out by hand in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from fastadv.attacks import OBJECTIVES, Context
from fastadv.attacks.objectives import get_objective, succeeded

# Objectives compute in float32: seven digits of logits up to 20.
TOLERANCE = {"rtol": 2e-6, "atol": 4e-6}


def sample(n: int = 7, k: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, clean outputs [n, k] float32 and labels [n]."""
    draw = torch.Generator().manual_seed(seed)
    outputs, clean = 6 * torch.randn(2, n, k, generator=draw)
    labels = torch.randint(0, k, (n,), generator=draw)
    labels[0], labels[1] = outputs[0].argmax(), outputs[1].argmin()
    return outputs, clean, labels


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(v - top) for v in row)) + top
    return [v - total for v in row]


def by_hand(name: str, row: list[float], clean: list[float], label: int) -> float:
    others = [v for i, v in enumerate(row) if i != label]
    first, _, third, *_ = sorted(row, reverse=True)
    log_p, log_q = log_softmax(clean), log_softmax(row)
    return {
        "cross_entropy": -log_q[label],
        "targeted": log_q[label],
        "margin": max(others) - row[label],
        "dlr": (max(others) - row[label]) / (first - third),
        "kl": sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True)),
        "feature_distance": sum((a - b) ** 2 for a, b in zip(row, clean, strict=True))
        / len(row),
    }[name]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_value_is_the_formula(name: str) -> None:
    outputs, clean, labels = sample()
    got = OBJECTIVES[name].per_sample(outputs, Context(labels, clean))
    rows = zip(outputs.tolist(), clean.tolist(), labels.tolist(), strict=True)
    expected = torch.tensor([by_hand(name, *row) for row in rows])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_half_precision_outputs_are_judged_in_float32(name: str) -> None:
    outputs, clean, labels = sample()
    half, clean_half = outputs.bfloat16(), clean.bfloat16()
    got = OBJECTIVES[name].per_sample(half, Context(labels, clean_half))
    expected = OBJECTIVES[name].per_sample(
        half.float(), Context(labels, clean_half.float())
    )
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_samples_do_not_mix(name: str) -> None:
    """The gradient of the summed loss in a row is that of the row alone."""
    outputs, clean, labels = sample()
    objective = OBJECTIVES[name]
    whole = outputs.clone().requires_grad_()
    objective.per_sample(whole, Context(labels, clean)).sum().backward()
    for n in range(len(labels)):
        row = outputs[n : n + 1].clone().requires_grad_()
        context = Context(labels[n : n + 1], clean[n : n + 1])
        loss = objective.per_sample(row, context).sum()
        loss.backward()
        # By definition DLR is 1, without gradient, where the true class ranks third.
        assert row.grad.abs().sum() > 0 or (name == "dlr" and loss == 1)
        torch.testing.assert_close(whole.grad[n : n + 1], row.grad)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(scale=st.floats(0.01, 1000), shift=st.floats(-50, 50), seed=st.integers(0, 1000))
def test_dlr_ignores_scale_and_shift(scale: float, shift: float, seed: int) -> None:
    outputs, _, labels = sample(seed=seed)
    dlr = OBJECTIVES["dlr"].per_sample
    moved = (outputs.double() * scale + shift).float()
    # Adding `shift` in float32 loses this much of the differences of the logits.
    gaps = moved.topk(3, dim=1).values
    lost = 1e-6 + 8e-7 * (abs(shift) + moved.abs().amax(1)) / (gaps[:, 0] - gaps[:, 2])
    before, after = (dlr(o, Context(labels)) for o in (outputs, moved))
    assert ((before - after).abs() <= lost * (1 + before.abs())).all()


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_margins_are_positive_exactly_on_wrong_predictions(name: str) -> None:
    outputs, _, labels = sample(n=200)
    loss = OBJECTIVES[name].per_sample(outputs, Context(labels))
    assert torch.equal(loss > 0, outputs.argmax(1) != labels)
    assert (loss > 0).any()
    assert (loss < 0).any()


def test_margin_keeps_a_gradient_where_cross_entropy_saturates() -> None:
    """Logits of a gradient-masked network: the softmax is exactly one-hot."""
    outputs = torch.tensor([[3000.0, 100.0, 20.0]], requires_grad=True)
    context = Context(torch.tensor([0]))
    for name, expected in (("cross_entropy", 0.0), ("margin", 1.0)):
        loss = OBJECTIVES[name].per_sample(outputs, context).sum()
        (grad,) = torch.autograd.grad(loss, outputs)
        assert grad.abs().max() == expected


@pytest.mark.parametrize("name", ["kl", "feature_distance"])
def test_distances_vanish_at_the_clean_output_with_their_gradient(name: str) -> None:
    _, clean, labels = sample()
    outputs = clean.clone().requires_grad_()
    objective = OBJECTIVES[name]
    assert objective.needs_clean
    assert objective.zero_at_clean
    loss = objective.per_sample(outputs, Context(labels, clean))
    (grad,) = torch.autograd.grad(loss.sum(), outputs)
    assert loss.abs().max() < 1e-6
    assert grad.abs().max() < 1e-6
    with pytest.raises(ValueError, match="compares with the clean outputs"):
        objective.per_sample(outputs, Context(labels))


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_success_counts_wrong_predictions_or_hit_targets(name: str) -> None:
    outputs, _, labels = sample(n=50)
    got = succeeded(outputs, Context(labels), OBJECTIVES[name])
    right = outputs.argmax(1) == labels
    assert torch.equal(got, right if name == "targeted" else ~right)
    assert 0 < int(got.sum()) < 50


def test_objectives_are_found_by_name_or_passed_through() -> None:
    own = OBJECTIVES["margin"]
    assert get_objective("margin") is own
    assert get_objective(own) is own
    with pytest.raises(ValueError, match="perhaps you meant: margin"):
        get_objective("margins")
