"""Accuracy, intervals, and robust accuracy of a network whose margins are known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastadv.attacks import PGD, AttackResult, Cascade
from fastadv.attacks.checks import Checks
from fastadv.data import Batch
from fastadv.errors import CheckpointError, ConfigError
from fastadv.evaluation.accuracy import Accuracy
from fastadv.evaluation.journal import Journal
from fastadv.evaluation.judging import evaluate
from fastadv.models import NormalizedModel, create_model
from fastadv.runs.eventlog import EventLog
from fastadv.statistics import wilson
from fastadv.threat import ThreatModel

SIDE = 4
PIXELS = 3 * SIDE * SIDE


class _Brightness(nn.Module):
    """Two logits: +-100 (mean of the image - 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(PIXELS, 2)
        self.linear.weight.data[0], self.linear.weight.data[1] = -1.0, 1.0
        self.linear.weight.data *= 100 / PIXELS
        self.linear.bias.data = torch.tensor([50.0, -50.0])

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


# Grey values and labels; dark is class 0. The last two are labelled wrongly.
GREYS = [0, 89, 115, 127, 140, 166, 255, 20, 240]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 0]


def _brightness() -> NormalizedModel:
    return NormalizedModel(_Brightness(), (0.0,) * 3, (1.0,) * 3, "brightness", 2)


def _batches(size: int) -> Iterator[Batch]:
    images = torch.tensor(GREYS, dtype=torch.uint8).view(-1, 1, 1, 1)
    images = images.repeat(1, 3, SIDE, SIDE)
    labels, indices = torch.tensor(LABELS), torch.arange(len(LABELS))
    for i in range(0, len(labels), size):
        rows = slice(i, i + size)
        yield Batch(images[rows], labels[rows], indices[rows])


@pytest.mark.parametrize("size", [1, 4, 9])
@pytest.mark.parametrize(("norm", "scale"), [("linf", 1.0), ("l2", math.sqrt(PIXELS))])
@pytest.mark.parametrize("radius", [0.01, 0.1, 0.2, 0.6])
def test_robust_accuracy_is_the_known_margin(
    size: int, norm: str, scale: float, radius: float
) -> None:
    """A uniform shift is the worst case: an image falls iff |grey - 0.5| < radius."""
    attack = PGD(
        ThreatModel(norm, radius * scale),  # type: ignore[arg-type]
        num_steps=10,
        random_start=True,
        keep="best",
    )
    found = evaluate(_brightness(), _batches(size), attack)
    assert found.clean.total.tolist() == [5, 4]
    assert found.clean.correct.tolist() == [4, 3]
    held = [
        (grey > 127.5) == label and abs(grey / 255 - 0.5) > radius
        for grey, label in zip(GREYS, LABELS, strict=True)
    ]
    expected = [
        sum(h for h, y in zip(held, LABELS, strict=True) if y == k) for k in (0, 1)
    ]
    assert found.robust is not None
    assert found.robust.correct.tolist() == expected
    assert found.robust.total.tolist() == [5, 4]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_steps": 3}, "meant for training"),
        ({"num_steps": 20, "keep": "last"}, "the last iterate alone"),
        ({"num_steps": 20, "step_size": 0.001}, "shorter than the radius"),
        ({"num_steps": 20}, None),
        ({"num_steps": 2, "random_start": True}, None),
    ],
)
def test_an_attack_that_is_meant_for_training_is_said_to_be(
    options: dict[str, Any], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate(_brightness(), _batches(9), PGD(ThreatModel("l2", 0.5), **options))
    assert ("may be too high" in caplog.text) == (reason is not None)
    assert reason is None or reason in caplog.text


def test_only_what_was_right_can_be_robust() -> None:
    """An attack that finds nothing leaves the clean accuracy, not all images."""

    class Harmless(PGD):
        def __call__(self, model: nn.Module, x: Tensor, y: Tensor, **_: Any) -> Any:
            found = super().__call__(model, x, y)
            return replace(found, x_adv=x / 255, success=found.success & False)

    attack = Harmless(ThreatModel("l2", 0.1), num_steps=1)
    found = evaluate(_brightness(), _batches(4), attack)
    assert found.robust is not None
    assert found.robust.correct.tolist() == found.clean.correct.tolist() == [4, 3]


class _Shift:
    """Fools what a uniform shift of `radius` fools: the known answer of each stage."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def prepare(self, model: nn.Module) -> nn.Module:
        return model

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, offset: int, active: Tensor
    ) -> AttackResult:
        moved = x / 255 + (0.5 - y.view(-1, 1, 1, 1)).sign() * self.radius
        success = (model(moved.clamp(0, 1)).argmax(1) != y) & active
        return AttackResult(moved, success, torch.zeros(len(y)), torch.zeros(1).long())


def _stages() -> Cascade:
    return Cascade(
        [("near", _Shift(0.05)), ("far", _Shift(0.2)), ("square", _Shift(1))]
    )


@pytest.mark.parametrize("size", [2, 9])
def test_each_attack_of_a_cascade_is_reported(size: int) -> None:
    model = _brightness().eval()
    found = evaluate(model, _batches(size), _stages(), checks=True)
    near, far, square = found.stages
    # |grey - 127.5| of the seven right ones: 127.5, 38.5, 12.5, 0.5, 12.5, 38.5, 127.5
    assert [s.attacked for s in found.stages] == [7, 4, 2]
    assert [s.robust.correct.tolist() for s in found.stages] == [[2, 2], [1, 1], [0, 0]]
    assert found.robust is square.robust
    assert (near.name, far.name, square.name) == ("near", "far", "square")
    assert all(s.seconds > 0 for s in found.stages)
    assert found.black_box_gain == pytest.approx(2 / 9)
    assert found.checks == Checks(9, probabilities=False)
    assert [w[:20] for w in found.warnings()] == ["the black-box attack"]


def test_a_black_box_attack_alone_says_nothing_of_masking() -> None:
    for stages in ([("square", _Shift(0.2))], [("apgd-ce", _Shift(0.2))]):
        found = evaluate(_brightness(), _batches(9), Cascade(stages))
        assert found.black_box_gain is None
        assert found.warnings() == []
        assert found.checks is None


# ---- the journal ----


def test_a_journal_gives_back_what_was_found(tmp_path: Path) -> None:
    settings = {"weights": "abc", "ci": (1, 2)}
    whole = evaluate(_brightness(), _batches(2), _stages(), checks=True)
    journal = Journal(tmp_path / "run", settings)
    for batch in range(3):  # the run dies in the fourth of five batches
        cut = itertools.islice(_batches(2), batch + 1)
        evaluate(_brightness(), cut, _stages(), checks=True, journal=journal)
    attacked = []

    class Counted(Cascade):
        def __call__(self, model: nn.Module, x: Tensor, *rest: Any, **more: Any) -> Any:
            attacked.append(more["offset"])
            return super().__call__(model, x, *rest, **more)

    again = Journal(tmp_path / "run", settings, resume=True)
    assert again.verdicts == journal.verdicts
    stages = _stages()
    counted = Counted(list(zip(stages.names, stages.stages, strict=True)))
    resumed = evaluate(_brightness(), _batches(2), counted, checks=True, journal=again)
    assert attacked == [6, 8]
    for a, b in zip(resumed.stages, whole.stages, strict=True):
        assert (a.name, a.attacked) == (b.name, b.attacked)
        assert torch.equal(a.robust.correct, b.robust.correct)
    assert resumed.checks == whole.checks
    assert resumed.warnings() == whole.warnings()


def test_a_torn_line_is_done_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"a": 1})
    evaluate(_brightness(), _batches(3), _stages(), journal=journal)
    path = tmp_path / "log.jsonl"
    text = path.read_bytes()
    path.write_bytes(text[:-30])  # as kill -9 leaves it
    again = Journal(tmp_path, {"a": 1}, resume=True)
    assert sorted(again.verdicts) == [0, 1]
    evaluate(_brightness(), _batches(3), _stages(), journal=again)
    third = Journal(tmp_path, {"a": 1}, resume=True)
    assert sorted(third.verdicts) == [0, 1, 2]
    assert third.verdicts[2].fell_to == journal.verdicts[2].fell_to


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, {"eps": 0.1, "seed": 0, "old": True})
    with pytest.raises(ConfigError, match="add `resume` to continue it, or choose"):
        Journal(tmp_path, {"eps": 0.1, "seed": 0, "old": True})
    with pytest.raises(ConfigError, match=r"eps: 0\.1 -> 0\.2, old: True -> None\)"):
        Journal(tmp_path, {"eps": 0.2, "seed": 0}, resume=True)
    Journal(tmp_path, {"eps": 0.1, "seed": 0, "old": True}, resume=True)


def test_the_log_of_a_training_run_is_no_journal(tmp_path: Path) -> None:
    EventLog(tmp_path / "log.jsonl").append("train", loss=1.0)
    for resume in (False, True):
        with pytest.raises(ConfigError, match="holds something else than an eval"):
            Journal(tmp_path, {"a": 1}, resume=resume)


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "run", tmp_path):
        (tmp_path / "log.jsonl").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"could not read .*log\.jsonl"):
            Journal(folder, {})


def test_evaluation_equals_a_plain_loop_and_changes_nothing() -> None:
    model = create_model("resnet8_cifar", 5, seed=2).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 16, 16), generator=generator).to(torch.uint8)
    labels = torch.arange(23) % 4  # class 4 has no image
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = [
        Batch(images[i : i + 7], labels[i : i + 7], labels) for i in range(0, 23, 7)
    ]
    found = evaluate(model, batches).clean
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    predicted = model.eval()(images / 255).argmax(1)
    right = predicted == labels
    assert found.correct.tolist() == labels[right].bincount(minlength=5).tolist()
    assert found.total.tolist() == [6, 6, 6, 5, 0]
    assert (found.n, found.top1) == (23, int(right.sum()) / 23)


def test_accuracy_in_numbers() -> None:
    accuracy = Accuracy(torch.tensor([9, 1, 0, 0]), torch.tensor([10, 2, 4, 0]))
    assert accuracy.n == 16
    assert accuracy.value("top1") == accuracy.top1 == 10 / 16
    # Classes without images do not count.
    assert accuracy.value("mean_per_class") == pytest.approx((0.9 + 0.5 + 0.0) / 3)
    assert accuracy.interval("top1") == wilson(10, 16)
    low, high = accuracy.interval("mean_per_class")
    assert 0 <= low < accuracy.mean_per_class < high <= 1
    perfect = Accuracy(torch.tensor([5, 5]), torch.tensor([5, 5]))
    low, high = perfect.interval("mean_per_class")
    assert low < 0.95  # ten right ones are no certainty
    assert high == 1


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, table I (method 3), and R: prop.test(8, 10, correct = FALSE)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (8, 10, 0.4902, 0.9433),
        (20, 20, 0.8389, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_mean_per_class_covers() -> None:
    """Drawn again and again, about 95 % of the intervals hold the true value."""
    generator = torch.Generator().manual_seed(0)
    truth, total = torch.tensor([0.9, 0.6, 0.3]), torch.tensor([40, 60, 30])
    hits = 0
    for _ in range(1000):
        drawn = torch.binomial(total.float(), truth, generator=generator).long()
        low, high = Accuracy(drawn, total).interval("mean_per_class")
        hits += low <= truth.mean().item() <= high
    assert 930 <= hits <= 975


# ---- any network, any batches ----


class _PlainBrightness(nn.Module):
    """The same network as a module of its own: pixels in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Brightness()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def _pairs(size: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in _batches(size):
        images = batch.images
        yield (images / 255 if dtype.is_floating_point else images), batch.labels


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("attacked", [False, True])
def test_any_module_and_any_batches(dtype: torch.dtype, attacked: bool) -> None:
    attack = PGD.judge(ThreatModel("linf", 0.1), 3) if attacked else None
    expected = evaluate(_brightness(), _batches(4), attack)
    found = evaluate(_PlainBrightness(), _pairs(4, dtype), attack)
    assert torch.equal(found.clean.correct, expected.clean.correct)
    assert torch.equal(found.clean.total, expected.clean.total)
    if expected.robust is not None and found.robust is not None:
        assert torch.equal(found.robust.correct, expected.robust.correct)
    loader = torch.utils.data.DataLoader(
        [
            (x, int(y))
            for xs, ys in _pairs(9, dtype)
            for x, y in zip(xs, ys, strict=True)
        ],
        batch_size=4,
    )
    again = evaluate(_PlainBrightness(), loader, attack)
    assert torch.equal(again.clean.correct, expected.clean.correct)


def test_bad_images_labels_and_outputs() -> None:
    images, labels = torch.rand(2, 3, SIDE, SIDE), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"values in \[.*need images in\s+\[0, 1\]"):
        evaluate(_PlainBrightness(), [(images * 2, labels)])
    with pytest.raises(ValueError, match=r"expected class ids in 0\.\.1"):
        evaluate(_PlainBrightness(), [(images, labels + 1)])
    with pytest.raises(TypeError, match="one tensor of logits"):
        evaluate(nn.Flatten(0), [(images, labels)])


# ---- logits ----


@pytest.mark.parametrize("size", [2, 9])
def test_verdict_and_logits_of_every_image(size: int) -> None:
    attack = PGD.judge(ThreatModel("linf", 0.1), 3)
    found = evaluate(_brightness(), _batches(size), attack, keep_logits=True)
    images = found.images
    assert images is not None
    assert images.labels.tolist() == LABELS
    # 0: fell to the attack, 1: withstood it, -1: wrong without one
    assert images.fell_to.tolist() == [1, 1, 0, 0, 0, 1, 1, -1, -1]
    assert images.clean_logits is not None
    assert images.attacked_logits is not None
    bright = 100 * (torch.tensor(GREYS) / 255 - 0.5)
    torch.testing.assert_close(images.clean_logits[:, 1], bright, atol=1e-3, rtol=0)
    right = images.clean_logits.argmax(1) == images.labels
    assert torch.equal(right, images.fell_to >= 0)
    held = images.attacked_logits.argmax(1) == images.labels
    assert torch.equal(held & right, images.fell_to == 1)
    assert set(images.arrays()) == {
        "labels",
        "fell_to",
        "clean_logits",
        "attacked_logits",
    }


def test_logits_are_kept_where_they_are_asked_for() -> None:
    images = evaluate(_brightness(), _batches(4)).images
    assert images is not None
    assert set(images.arrays()) == {"labels", "fell_to"}
    images = evaluate(_brightness(), _batches(4), keep_logits=True).images
    assert images is not None
    assert set(images.arrays()) == {"labels", "fell_to", "clean_logits"}


def test_a_journal_keeps_logits_exactly(tmp_path: Path) -> None:
    whole = evaluate(_brightness(), _batches(2), _stages_of_pgd(), keep_logits=True)
    journal = Journal(tmp_path, {"a": 1})
    cut = itertools.islice(_batches(2), 3)
    evaluate(_brightness(), cut, _stages_of_pgd(), journal=journal, keep_logits=True)
    again = Journal(tmp_path, {"a": 1}, resume=True)
    resumed = evaluate(
        _brightness(), _batches(2), _stages_of_pgd(), journal=again, keep_logits=True
    )
    assert whole.images is not None
    assert resumed.images is not None
    for name, values in whole.images.arrays().items():
        assert torch.equal(resumed.images.arrays()[name], values), name
    # Everything comes from the journal, also for a network that states no classes.
    third = Journal(tmp_path, {"a": 1}, resume=True)
    found = evaluate(_PlainBrightness(), _batches(2), _stages_of_pgd(), journal=third)
    assert torch.equal(found.clean.total, whole.clean.total)


def test_a_journal_of_before_is_resumed(tmp_path: Path) -> None:
    """Verdicts without logits count; their logits are unknown."""
    whole = evaluate(_brightness(), _batches(2), _stages_of_pgd(), checks=True)
    journal = Journal(tmp_path, {"a": 1})
    cut = itertools.islice(_batches(2), 3)
    evaluate(_brightness(), cut, _stages_of_pgd(), checks=True, journal=journal)
    path = tmp_path / "log.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events[1:]:
        for name in ("num_classes", "clean_logits", "attacked_logits"):
            del event[name]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    again = Journal(tmp_path, {"a": 1}, resume=True)
    assert sorted(again.verdicts) == [0, 1, 2]
    resumed = evaluate(
        _brightness(),
        _batches(2),
        _stages_of_pgd(),
        checks=True,
        journal=again,
        keep_logits=True,
    )
    for a, b in zip(resumed.stages, whole.stages, strict=True):
        assert torch.equal(a.robust.correct, b.robust.correct)
    assert resumed.checks == whole.checks
    images = resumed.images
    assert images is not None
    assert images.clean_logits is not None
    assert images.clean_logits.isnan().all(1).tolist() == [True] * 6 + [False] * 3


def _stages_of_pgd() -> Cascade:
    return Cascade(
        [
            ("near", PGD.judge(ThreatModel("linf", 0.03), 2)),
            ("far", PGD.judge(ThreatModel("linf", 0.2), 2)),
        ]
    )
