"""The adversarial step of other people's loops: what it returns, and what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from attack_nets import MEAN, STD, batch, same_bits, small_model, snapshot
from torch import Tensor, nn

from fastadv.attacks import PGD, ThreatModel
from fastadv.evaluation import evaluate
from fastadv.loops import Adversary, bare_network
from fastadv.models import AttackView, LiveView

THREAT = ThreatModel("linf", "8/255")
UINT8, LABELS = batch(6)
IMAGES = UINT8 / 255
NORMALISED = (IMAGES - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
    3, 1, 1
)


def _attack(**options: Any) -> PGD:
    return PGD(THREAT, num_steps=3, **options)


def test_the_step_is_the_attack() -> None:
    model = small_model()
    expected, z = _attack().perturb(model, IMAGES, LABELS)
    found = Adversary(_attack())(model, IMAGES, LABELS)
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert torch.equal(Adversary(_attack())(model, UINT8, LABELS), expected)
    # The bare network, in a loop whose images are normalised.
    found = Adversary(_attack(), MEAN, STD)(model.net, NORMALISED, LABELS)
    torch.testing.assert_close(found, z, atol=1e-4, rtol=0)
    loss, clean = (
        F.cross_entropy(model.net(each), LABELS) for each in (found, NORMALISED)
    )
    assert loss > clean + 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("normalised", [False, True])
def test_images_come_back_as_they_were_given(
    dtype: torch.dtype, order: torch.memory_format, normalised: bool
) -> None:
    model = small_model() if not normalised else small_model().net
    given = (NORMALISED if normalised else IMAGES).to(dtype, memory_format=order)
    kept = given.clone()
    mean, std = (MEAN, STD) if normalised else (None, None)
    found = Adversary(_attack(), mean, std)(model, given, LABELS)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=order)
    assert torch.equal(given, kept)
    moved = (found.float() - given.float()).abs().amax()
    assert 0.02 < moved < (8 / 255) / (min(STD) if normalised else 1) + 0.03


def test_nothing_of_the_network_changes() -> None:
    model = small_model().train()
    model.net.head.weight.grad = torch.ones_like(model.net.head.weight)
    before = snapshot(model)
    Adversary(_attack())(model, IMAGES, LABELS)
    assert model.training
    assert same_bits(snapshot(model), before)
    assert model.net.head.weight.grad.eq(1).all()
    assert model.net.conv1.weight.grad is None


def test_every_step_draws_another_start() -> None:
    model = small_model()
    adversary = Adversary(PGD(THREAT, num_steps=1, step_size=1e-9, random_start=True))
    first, second = (adversary(model, IMAGES, LABELS) - IMAGES for _ in range(2))
    assert (first - second).abs().mean() > 0.005


def _step(model: nn.Module) -> None:
    model.net.head.weight.data.neg_()  # `.data` hides the write from version counters


def _statistics(model: nn.Module) -> None:
    model.net.bn1.running_mean += 1.0
    model.net.bn1.running_var *= 4.0


def _load(model: nn.Module) -> None:
    model.load_state_dict(small_model(5).state_dict())


def _replace(model: nn.Module) -> None:
    model.net.head.weight = nn.Parameter(-model.net.head.weight.detach())


@pytest.mark.parametrize("change", [_step, _statistics, _load, _replace])
def test_the_view_is_never_stale(change: Any) -> None:
    model = small_model()
    adversary = Adversary(_attack())
    before = adversary(model, IMAGES, LABELS)
    change(model)
    found = adversary(model, IMAGES, LABELS)
    assert not torch.equal(found, before)
    expected, _ = _attack().perturb(model, IMAGES, LABELS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_several_networks_share_one_adversary() -> None:
    one, other = small_model(), small_model(3)
    adversary = Adversary(_attack())
    for model in (one, other, one):
        expected, _ = _attack().perturb(model, IMAGES, LABELS)
        assert torch.equal(adversary(model, IMAGES, LABELS), expected)


def test_wrappers_are_taken_off() -> None:
    model = small_model()
    wrapped = [nn.DataParallel(model), torch.compile(model)]
    expected = Adversary(_attack())(model, IMAGES, LABELS)
    for each in [*wrapped, torch.compile(nn.DataParallel(model))]:
        assert bare_network(each) is model
        assert torch.equal(Adversary(_attack())(each, IMAGES, LABELS), expected)


def test_ranks_draw_starts_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    start = PGD(THREAT, num_steps=1, step_size=1e-9, random_start=True)
    try:
        model = nn.parallel.DistributedDataParallel(small_model())
        starts = []
        for rank in (0, 1, 0):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            adversary = Adversary(copy.deepcopy(start))
            starts.append(adversary(model, IMAGES, LABELS))
    finally:
        dist.destroy_process_group()
    assert torch.equal(starts[0], starts[2])
    assert (starts[0] - starts[1]).abs().mean() > 0.001
    alone = Adversary(copy.deepcopy(start))(small_model(), IMAGES, LABELS)
    assert torch.equal(starts[0], alone)


def test_a_replaced_forward_is_called() -> None:
    """Accelerate puts autocast into `forward`; a copy would call that of the original."""
    model = small_model()
    seen = []
    original = model.net.forward

    def patched(z: Tensor) -> Tensor:
        seen.append(len(z))
        return original(z)

    model.net.forward = patched  # type: ignore[method-assign]
    adversary = Adversary(_attack())
    found = adversary(model, IMAGES, LABELS)
    assert isinstance(adversary.view(model), LiveView)
    assert len(seen) == 3
    torch.testing.assert_close(
        found, Adversary(_attack())(small_model(), IMAGES, LABELS), atol=1e-5, rtol=0
    )
    assert type(Adversary(_attack(), live=False).view(model)) is AttackView
    assert isinstance(Adversary(_attack(), live=True).view(small_model()), LiveView)


def test_labels_may_be_mixed() -> None:
    model = small_model()
    soft = F.one_hot(LABELS, 10).float()
    hard = Adversary(_attack())(model, IMAGES, LABELS)
    torch.testing.assert_close(Adversary(_attack())(model, IMAGES, soft), hard)
    mixed = Adversary(_attack())(model, IMAGES, (soft + soft.flip(0)) / 2)
    assert not torch.equal(mixed, hard)


def test_evaluation_in_the_loops_own_terms() -> None:
    model, judge = small_model(), PGD.judge(THREAT, 3)
    adversary = Adversary(_attack(), MEAN, STD)
    expected = evaluate(model, [(IMAGES, LABELS)], judge)
    loader = [{"pixel_values": NORMALISED, "labels": LABELS}]
    found = evaluate(adversary.view(model.net), adversary.batches(loader), judge)
    assert torch.equal(found.clean.correct, expected.clean.correct)
    assert found.robust is not None
    assert expected.robust is not None
    assert found.robust.top1 == expected.robust.top1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (NORMALISED * 1.5, "once their normalisation by mean"),
        (IMAGES * 255, "once their normalisation by mean"),
        (UINT8, "normalised images are floating point"),
    ],
)
def test_images_that_are_not_normalised_so(given: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Adversary(_attack(), MEAN, STD)(small_model().net, given, LABELS)


def test_other_mistakes() -> None:
    with pytest.raises(ValueError, match="give both"):
        Adversary(_attack(), mean=MEAN)
    with pytest.raises(ValueError, match=r"need images in \[0, 1\]"):
        Adversary(_attack())(small_model().net, NORMALISED, LABELS)
    with pytest.raises(TypeError, match="one tensor of logits"):
        Adversary(_attack())(nn.Flatten(0), IMAGES, LABELS)
