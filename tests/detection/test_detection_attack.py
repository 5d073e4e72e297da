"""The attack on detectors: against a plain loop, within its ball, without a trace."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tiny_detectors import EXHAUSTIVE, Images, objects, tiny_detector
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from fastadv.detection.attack import DetectorAttack
from fastadv.detection.networks import build_detector
from fastadv.detection.view import LOSSES, DetectorView, seeded_sampling
from fastadv.models import create_model
from fastadv.threat import ThreatModel

CPU = torch.device("cpu")
LINF, L2 = ThreatModel("linf", "8/255"), ThreatModel("l2", 1.5)


def own_losses(detector: nn.Module, images: list[Tensor], targets: Any) -> Any:
    """The detector's own losses in training, with BatchNorm in evaluation mode."""
    detector.train()
    detector.backbone.eval()
    detector.transform.eval()  # type: ignore[union-attr]
    return detector(images, targets)


def plain_loop(
    detector: nn.Module, given: Images, attack: DetectorAttack, names: tuple[str, ...]
) -> list[Tensor]:
    """The same attack as anybody would write it, image by image where they differ."""
    images, targets = given
    clean = [image / 255 for image in images]
    x = [image.clone() for image in clean]
    eps, size = attack.threat.eps, attack.step_size
    with seeded_sampling(attack.seed, CPU):
        for _ in range(attack.num_steps):
            x = [image.detach().requires_grad_() for image in x]
            losses = own_losses(detector, x, targets)
            gradients = torch.autograd.grad(sum(losses[name] for name in names), x)
            for i, (image, gradient) in enumerate(zip(x, gradients, strict=True)):
                moved = image.detach() - clean[i]
                if attack.threat.norm == "linf":
                    moved = (moved + size * gradient.sign()).clamp(-eps, eps)
                else:
                    moved = moved + size * gradient / gradient.norm().clamp_min(1e-20)
                    moved = moved * (eps / moved.norm().clamp_min(1e-12)).clamp_max(1)
                x[i] = (clean[i] + moved).clamp(0, 1)
    return x


def state(detector: nn.Module) -> list[Any]:
    tensors = (*detector.parameters(), *detector.buffers())
    return [
        [module.training for module in detector.modules()],
        [parameter.requires_grad for parameter in detector.parameters()],
        [parameter.grad for parameter in detector.parameters()],
        [tensor.clone() for tensor in tensors],
    ]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
@pytest.mark.parametrize("losses", LOSSES)
def test_the_view_has_the_losses_and_gradients_of_the_detector(
    norm: Any, losses: str
) -> None:
    detector = tiny_detector(masks=True, norm=norm, **EXHAUSTIVE)
    images, targets = objects()
    clean = [(image / 255).requires_grad_() for image in images]
    with seeded_sampling(3, CPU):
        found = own_losses(detector, clean, targets)
    names = LOSSES[losses]
    wanted = sum(found[name] for name in names)
    gradients = torch.autograd.grad(wanted, clean)
    view = DetectorView(detector, losses)
    assert view.backbone.folded == (2 if norm is nn.BatchNorm2d else 0)
    mean, std = (value.view(3, 1, 1) for value in view.statistics())
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    z = torch.full((3, 3, 72, 80), torch.nan)  # padding that would be noticed
    for canvas, image in zip(z, clean, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = (image.detach() - mean) / std
    z.requires_grad_()
    with seeded_sampling(3, CPU):
        total = view(z, sizes, view.resized(targets, sizes))
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(total, z)
    for mine, theirs, (height, width) in zip(gradient, gradients, sizes, strict=True):
        mine = mine / std
        torch.testing.assert_close(
            mine[:, :height, :width],
            theirs,
            rtol=1e-3,
            atol=1e-3 * float(theirs.abs().max()),
        )
        assert not mine[:, height:].any()
        assert not mine[:, :, width:].any()
    assert not any(parameter.requires_grad for parameter in view.parameters())


def test_the_view_folds_the_backbones_that_are_built_here() -> None:
    detector = build_detector(create_model("resnet18", seed=0), 2)
    view = DetectorView(detector)
    assert view.backbone.unfolded_reason is None
    assert (view.backbone.folded, view.backbone.unfolded) == (20, {})


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("loss", ["classification", "regression", "all"])
def test_it_finds_what_a_plain_loop_finds(threat: ThreatModel, loss: Any) -> None:
    detector, given = tiny_detector(masks=True, **EXHAUSTIVE), objects()
    attack = DetectorAttack(threat, 3, random_start=False, loss=loss, seed=5)
    found = attack(detector, *given)
    theirs = plain_loop(copy.deepcopy(detector), given, attack, LOSSES[loss])
    for i, (mine, other) in enumerate(zip(found.images, theirs, strict=True)):
        moved = (other - given[0][i] / 255).norm()
        # Where there is no object, no box can be regressed.
        empty = loss == "regression" and not len(given[1][i]["boxes"])
        assert moved == 0 if empty else moved > 0.4 * threat.eps
        if threat.norm == "linf":  # a gradient of zero may be one near zero
            differ = (mine - other)[other != given[0][i] / 255].abs() > 1e-5
            assert empty or differ.float().mean() < 0.02
        else:
            torch.testing.assert_close(mine, other, rtol=0, atol=2e-4)
    assert found.losses.shape == (3,)
    assert found.losses[-1] > found.losses[0]
    assert found.nonfinite.tolist() == [0]


@settings(max_examples=12, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(0.01, 0.9),
    steps=st.integers(1, 2),
    start=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
)
def test_box_and_ball_always_hold(
    norm: Any, eps: float, steps: int, start: bool, dtype: torch.dtype
) -> None:
    threat = ThreatModel(norm, eps)
    attack = DetectorAttack(threat, steps, step_size=2 * eps, random_start=start)
    images, targets = objects(dtype=dtype)
    found = attack(tiny_detector(), images, targets).images
    for image, attacked in zip(images, found, strict=True):
        clean = image / 255 if dtype == torch.uint8 else image
        assert attacked.shape == image.shape
        assert attacked.dtype == torch.float32
        assert attacked.min() >= 0
        assert attacked.max() <= 1
        moved = (attacked.double() - clean.double()).flatten()
        size = moved.abs().max() if norm == "linf" else moved.norm()
        assert 0.2 * eps < size <= eps + 1e-6


def test_the_detector_and_the_generators_are_as_before() -> None:
    detector, (images, targets) = tiny_detector(masks=True), objects()
    detector.train()
    detector.backbone[1].eval()  # type: ignore[index]
    before, kept = state(detector), copy.deepcopy((images, targets))
    generator = torch.get_rng_state()
    DetectorAttack(LINF, 2, loss="all")(detector, images, targets)
    for old, new in zip(before, state(detector), strict=True):
        assert len(old) == len(new)
        for a, b in zip(old, new, strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    assert torch.equal(generator, torch.get_rng_state())
    for a, b in zip(kept[0], images, strict=True):
        assert torch.equal(a, b)
    assert all(
        torch.equal(a["boxes"], b["boxes"])
        for a, b in zip(kept[1], targets, strict=True)
    )


def test_equal_seeds_give_equal_images_and_offsets_others() -> None:
    detector, given = tiny_detector(), objects()
    attack = DetectorAttack(L2, 2)
    view = attack.prepare(detector)
    first, again = attack(view, *given).images, attack(detector, *given).images
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for other in (attack(view, *given, offset=3), attack(view, *given, seed=9)):
        assert not any(
            torch.equal(a, b) for a, b in zip(first, other.images, strict=True)
        )


def test_a_start_does_not_depend_on_the_other_images() -> None:
    """Oracle: with steps of no length, the start is what is returned."""
    detector, (images, targets) = tiny_detector(), objects()
    for threat in (LINF, L2):
        attack = DetectorAttack(threat, 1, step_size=0.0)
        together = attack(detector, images, targets).images
        for i, image in enumerate(images):
            (alone,) = attack(detector, [image], [targets[i]], offset=i).images
            torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-6)


def test_crowds_and_boxes_without_area_do_not_count() -> None:
    detector, (images, targets) = tiny_detector(masks=True), objects()
    more, added = [], torch.tensor([[2.0, 2, 40, 40], [9, 9, 9, 20]])
    for target in targets:
        height, width = target["masks"].shape[-2:]
        more.append(
            {
                "boxes": torch.cat([target["boxes"], added]),
                "labels": torch.cat([target["labels"], torch.tensor([1, 2])]),
                "masks": torch.cat(
                    [target["masks"], torch.ones(2, height, width).byte()]
                ),
                "iscrowd": torch.cat([target["iscrowd"], torch.tensor([1, 0]).byte()]),
            }
        )
    attack = DetectorAttack(LINF, 2, loss="all")
    without, given = (attack(detector, images, each).images for each in (targets, more))
    assert all(torch.equal(a, b) for a, b in zip(without, given, strict=True))


def test_a_view_follows_the_weights() -> None:
    detector, given = tiny_detector(), objects()
    attack = DetectorAttack(LINF, 2)
    view = attack.prepare(detector)
    before = attack(view, *given).losses
    with torch.no_grad():
        detector.backbone[0].weight.mul_(1.5)  # type: ignore[index]
        detector.roi_heads.box_predictor.cls_score.bias.add_(1)  # type: ignore[union-attr]
    followed, fresh = attack(view, *given), attack(copy.deepcopy(detector), *given)
    assert not torch.equal(before, followed.losses)
    torch.testing.assert_close(followed.losses, fresh.losses, rtol=1e-5, atol=1e-6)


def test_the_mask_head_runs_only_where_its_loss_counts() -> None:
    detector, given = tiny_detector(masks=True), objects()
    for loss, runs in (("both", False), ("all", True)):
        attack = DetectorAttack(LINF, 1, loss=loss)  # type: ignore[arg-type]
        view = attack.prepare(detector)
        assert (view.net.roi_heads.mask_head is not None) == runs  # type: ignore[union-attr]
        attack(view, *given)
    assert detector.roi_heads.mask_head is not None  # type: ignore[union-attr]


def test_bad_input_is_refused() -> None:
    detector, (images, targets) = tiny_detector(), objects()
    attack = DetectorAttack(LINF)
    for bad, message in (
        (([], []), "0 images and 0 targets"),
        ((images, targets[:2]), "3 images and 2 targets"),
        (([images[0][:2]], targets[:1]), r"shape \[2, 60, 80\]"),
        (([images[0].float()], targets[:1]), r"need images in \[0, 1\]"),
        (([images[0], images[1] / 255], targets[:2]), "differ in dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            attack(detector, *bad)
    with pytest.raises(TypeError, match="Linear has no transform, backbone"):
        attack(nn.Linear(1, 1), images, targets)
    with pytest.raises(ValueError, match="no mask head"):
        DetectorAttack(LINF, loss="all")(detector, images, targets)
    with pytest.raises(ValueError, match="the view has the losses 'regression'"):
        attack(DetectorView(detector, "regression"), images, targets)
    with pytest.raises(ValueError, match="'fog' is unknown; accepted: classification"):
        DetectorAttack(LINF, loss="fog")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step_size=-1"):
        DetectorAttack(LINF, step_size=-1)
    with pytest.raises(ValueError, match="num_steps=0"):
        DetectorAttack(LINF, num_steps=0)
