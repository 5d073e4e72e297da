"""`PGD.perturb`, the call inside somebody's own training loop: starts, checks, views."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from attack_nets import batch, small_model
from torch import Tensor

from fastadv import PGD, AttackView, ThreatModel

IMAGES, LABELS = batch()
THREAT = ThreatModel("linf", 8 / 255)
STILL = {"num_steps": 1, "step_size": 0.0, "random_start": True}


def test_every_call_draws_a_new_start_and_a_seed_draws_it_again() -> None:
    def starts(seed: int, calls: int, each: int | None = None) -> list[Tensor]:
        attack, view = PGD(THREAT, seed=seed, **STILL), AttackView(small_model())
        return [
            attack.perturb(view, IMAGES, LABELS, seed=each)[0] for _ in range(calls)
        ]

    first = starts(3, 3)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        # Independent uniform starts differ by 2/3 eps in the mean.
        assert (first[a] - first[b]).abs().mean() > 0.4 * THREAT.eps
    assert all(map(torch.equal, first, starts(3, 3)))
    assert not torch.equal(first[0], starts(4, 1)[0])
    again = starts(3, 2, each=11)
    assert torch.equal(*again)


def test_attacks_of_another_radius_go_on_in_the_sequence() -> None:
    """A loop whose radius warms up scales its attack anew in every epoch."""
    attack, view = PGD(THREAT, **STILL), AttackView(small_model())
    clean = torch.full((2, 3, 16, 16), 0.5)
    first, second = (
        attack.scaled(0.5).perturb(view, clean, LABELS[:2])[0] for _ in range(2)
    )
    assert (first - second).abs().mean() > 0.2 * THREAT.eps


@pytest.mark.parametrize("scale", [255.0, -1.0])
def test_images_outside_of_the_box_are_refused(scale: float) -> None:
    attack, view = PGD(THREAT), AttackView(small_model())
    attack.perturb(view, IMAGES, LABELS)
    wrong = IMAGES.float() / 255 * scale
    with pytest.raises(ValueError, match=re.escape("attacks need images in [0, 1]")):
        attack.perturb(view, wrong, LABELS)


@pytest.mark.parametrize("update", ["sgd", "adamw", "load_state_dict"])
def test_a_stale_view_follows_the_model(update: str) -> None:
    model = small_model().train()
    other = small_model(seed=5)
    view, attack = AttackView(model), PGD(THREAT, compile="off")
    before, _ = attack.perturb(view, IMAGES, LABELS)
    if update == "load_state_dict":
        model.load_state_dict(other.state_dict())
    else:
        kind = torch.optim.SGD if update == "sgd" else torch.optim.AdamW
        optimizer = kind(model.parameters(), lr=0.1)
        model.eval()  # no statistics change, only weights
        torch.nn.functional.cross_entropy(model(IMAGES / 255), LABELS).backward()
        optimizer.step()
    after, _ = attack.perturb(view, IMAGES, LABELS)
    fresh, _ = attack.perturb(AttackView(model), IMAGES, LABELS)
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)


def test_a_view_that_is_fresh_is_not_refreshed(monkeypatch: pytest.MonkeyPatch) -> None:
    view, attack = AttackView(small_model()), PGD(THREAT)
    monkeypatch.setattr(view, "refresh", lambda: pytest.fail("it was refreshed"))
    for _ in range(2):
        attack.perturb(view, IMAGES, LABELS)
        attack(view, IMAGES, LABELS)


@pytest.mark.parametrize("call", ["judged", "perturb"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"x": IMAGES.numpy()},
            r"x is a ndarray; attacks take tensors, which torch.as_tens",
        ),
        ({"y": LABELS.numpy()}, "y is a ndarray; attacks take tensors"),
        ({"y": LABELS.tolist()}, "y is a list; attacks take tensors"),
        ({"x": None}, "x is a NoneType"),
        ({"x": IMAGES.half()}, "x is torch.float16; accepted: uint8, float32, float64"),
        ({"x": (255 * IMAGES).int()}, "x is torch.int32; accepted"),
        ({"y": LABELS.int()}, "y is torch.int32; expected class ids, int64"),
        (
            {"model": len},
            "the model is a builtin_function_or_method; attacks take a torch.nn",
        ),
    ],
)
def test_what_is_no_batch_of_tensors(
    call: str, change: dict[str, Any], said: str
) -> None:
    attack = PGD(THREAT, num_steps=1)
    given = {"model": small_model(), "x": IMAGES, "y": LABELS} | change
    with pytest.raises(TypeError, match=said):
        (attack if call == "judged" else attack.perturb)(*given.values())
