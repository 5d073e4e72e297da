"""Small perturbations reach a network that computes in bfloat16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_runs import tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv.attacks import PGD
from fastadv.models import NormalizedModel, create_model
from fastadv.models.view import AttackView
from fastadv.threat import ThreatModel
from fastadv.training import Trainer
from fastadv.training.learner import needs_exact_input
from fastadv.training.methods import Net

SIDE = 224


class FirstInput(TorchDispatchMode):
    """Keep what the first convolution reads, below autocast, and every dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.inputs.append(args[0].detach().clone())
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model() -> NormalizedModel:
    return create_model("resnet18", 4, seed=0).to(memory_format=torch.channels_last)


def photo(seed: int = 0) -> Tensor:
    """Smooth noise, float32 [1, 3, 224, 224] in [0.1, 0.9]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 28, 28, generator=generator)
    smooth = nn.functional.interpolate(coarse, SIDE, mode="bilinear")
    return 0.1 + 0.8 * smooth.contiguous(memory_format=torch.channels_last)


def perturbation(eps: float) -> Tensor:
    noise = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return eps * noise / noise.norm()


def seen(network: Any, model: NormalizedModel, z: Tensor) -> tuple[Tensor, set[Any]]:
    """What the first convolution reads in pixel units, and the other dtypes."""
    with torch.no_grad(), FirstInput() as trace:
        network(z)
    first, *rest = trace.inputs
    assert len(rest) == 19
    return first.double() * model.std.view(-1, 1, 1), {value.dtype for value in rest}


@pytest.mark.parametrize("where", ["attack", "training"])
@pytest.mark.parametrize("eps", [0.01, 0.05, 0.25])
def test_what_the_network_sees_of_a_small_perturbation(
    model: NormalizedModel, where: str, eps: float
) -> None:
    x, delta = photo(), perturbation(eps)
    found = {}
    for exact in (False, True):
        if where == "attack":
            view = AttackView(model.eval(), dtype=torch.bfloat16, exact_input=exact)
            images = [view.normalize(each) for each in (x, x + delta)]
            pairs = [seen(view, model, z) for z in images]
        else:
            net = Net(model.train(), "bf16", exact_input=exact)
            pairs = [seen(net, model, net.normalized(each)) for each in (x, x + delta)]
        assert all(dtypes == {torch.bfloat16} for _, dtypes in pairs)
        change = (pairs[1][0] - pairs[0][0]).flatten()
        wanted = delta.double().flatten()
        cosine = float(change @ wanted / change.norm() / wanted.norm())
        found[exact] = cosine, float(change.norm()) / eps
    assert found[True][0] > 0.99
    assert found[True][1] == pytest.approx(1, abs=0.01)
    # The audit of rounding alone: 0.21 at 0.01, 0.47 at 0.05, 0.84 at 0.25.
    assert found[False][0] < 0.9
    assert found[False][1] > 1.1


def test_the_attack_moves_as_in_float32(model: NormalizedModel) -> None:
    """The perturbation that PGD finds in the exact view is nearer to that of float32."""
    x, y = photo(), torch.zeros(1, dtype=torch.int64)
    attack, delta = PGD(ThreatModel("l2", 0.05), 1, dtype=torch.bfloat16), {}
    wide = PGD(ThreatModel("l2", 0.05), 1)
    expected = (wide.perturb(AttackView(model.eval()), x, y)[0] - x).flatten()
    view = AttackView(model.eval(), dtype=torch.bfloat16, exact_input=True)
    x_adv, z = attack.perturb(view, x, y)
    assert z.dtype == torch.float32
    delta = (x_adv - x).flatten()
    assert delta.norm() == pytest.approx(0.05, rel=0.01)
    assert torch.nn.functional.cosine_similarity(delta, expected, dim=0) > 0.9
    # A view of weights that changed still holds the first layer in float32.
    before = view(z)
    with torch.no_grad():
        model.net.conv1.weight.mul_(2)
    view.refresh()
    assert not torch.equal(view(z), before)
    with torch.no_grad():
        model.net.conv1.weight.div_(2)


@pytest.mark.parametrize(
    ("norm", "eps", "side", "dtype", "needed"),
    [
        ("l2", 0.05, 224, torch.bfloat16, True),
        ("l2", 0.5, 224, torch.bfloat16, True),
        ("l2", 1.0, 224, torch.bfloat16, False),
        ("l2", 3.0, 224, torch.bfloat16, False),
        ("l2", 0.25, 32, torch.bfloat16, False),
        ("linf", 0.5 / 255, 224, torch.bfloat16, False),
        ("linf", 0.25 / 255, 224, torch.bfloat16, True),
        ("l2", 0.25, 224, torch.float16, False),
        ("l2", 0.05, 224, torch.float16, True),
        ("l2", 0.01, 224, None, False),
    ],
)
def test_only_small_radii_need_it(
    norm: Any, eps: float, side: int, dtype: torch.dtype | None, needed: bool
) -> None:
    assert needs_exact_input(ThreatModel(norm, eps), side, dtype) == needed


@pytest.mark.parametrize("eps", [0.01, 0.1, 0.5, 0.76, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rule_is_what_rounding_does(eps: float, dtype: torch.dtype) -> None:
    """Radii that survive by the rule leave a cosine above 0.95, others below 0.99."""
    mean, std = torch.tensor(0.45), torch.tensor(0.225)
    x, delta = photo(), perturbation(eps)
    rounded = [((each - mean) / std).to(dtype).double() for each in (x, x + delta)]
    change = (rounded[1] - rounded[0]).flatten() * 0.225
    wanted = delta.double().flatten()
    cosine = change @ wanted / change.norm() / wanted.norm()
    if ThreatModel("l2", eps).survives(SIDE, torch.finfo(dtype).eps):
        assert cosine > 0.95
    else:
        assert cosine < 0.99


def test_the_log_says_so(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for eps, said in ((0.01, True), (0.25, False)):
        config = tiny(tmp_path / "run", eps=eps, precision="bf16")
        Trainer(config, dry_run=True).describe()
        assert ("inputs of the network stay float32" in capsys.readouterr().err) == said
