"""Whole attacks against other libraries: PGD-3 within L2 3 at 224 px, images per second.

    python bench/bench_attack.py [--arch resnet18 resnet50] [--batch 16] [--repeats 5]
        [--device cuda --precision bf16]
    python bench/bench_attack.py --peers --name training_steps

All run in one process, in turn, on the same network in eval mode and the same batch,
without random start. torchattacks, foolbox and ART are called as their users call them;
of `robustness` its own attack steps run in the loop of its Attacker, whose hard-coded
`.cuda()` calls keep the class itself from running here. foolbox and ART also classify what
they found, one forward pass more; `fastadv, judged` does so too. `--peers` with nothing
behind it leaves them out: what is left compares training steps. `train` is a clean training
step, `train, torch` the same on PyTorch's own convolutions, `train, PGD-3` one on the
adversarial images, `refresh` what following the weights costs. Which peer computes weight
gradients is not taken from its source but counted in the operators it calls.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved

from fastadv import PGD, AttackView, NormalizedModel, ThreatModel, create_model
from fastadv.machine import keep_freed_memory
from fastadv.training import methods, train_step

EPS, STEPS = 3.0, 3
STEP_SIZE = 2 * EPS / 3


class Autocast(nn.Module):
    """A network whose passes run in bfloat16, as its users would have them."""

    def __init__(self, model: NormalizedModel) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.model(x).float()


def with_loop(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    def attack(x0: Tensor, y: Tensor) -> Tensor:
        x = x0
        for _ in range(STEPS):
            x = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
            with torch.no_grad():
                length = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = x + STEP_SIZE * grad / (length + 1e-10) - x0
                size = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                delta = delta * (EPS / size.clamp_min(1e-12)).clamp(max=1)
                x = (x0 + delta).clamp(0, 1)
        return x

    return attack


def with_torchattacks(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    import torchattacks

    return torchattacks.PGDL2(
        model, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=False
    )


def with_foolbox(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    import foolbox

    device = next(model.parameters()).device
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    attack = foolbox.attacks.L2ProjectedGradientDescentAttack(
        abs_stepsize=STEP_SIZE, steps=STEPS, random_start=False
    )
    return lambda x, y: attack(wrapped, x, y, epsilons=EPS)[1]


def with_robustness(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    from robustness.attack_steps import L2Step

    def attack(x: Tensor, y: Tensor) -> Tensor:
        step = L2Step(orig_input=x.detach(), eps=EPS, step_size=STEP_SIZE)
        for _ in range(STEPS):
            x = x.clone().detach().requires_grad_(True)
            losses = F.cross_entropy(model(x), y, reduction="none")
            (grad,) = torch.autograd.grad(losses.mean(), [x])
            with torch.no_grad():
                x = step.project(step.step(x, grad))
        return x.detach()

    return attack


def with_art(model: NormalizedModel | Autocast) -> Callable[[Tensor, Tensor], Tensor]:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=(3, 224, 224),
        nb_classes=model.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if next(model.parameters()).is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier,
        norm=2,
        eps=EPS,
        eps_step=STEP_SIZE,
        max_iter=STEPS,
        batch_size=1024,
        verbose=False,
    )
    return lambda x, y: torch.from_numpy(
        attack.generate(x.cpu().numpy(), y.cpu().numpy())
    ).to(x.device)


PEERS = {
    "loop": with_loop,
    "torchattacks": with_torchattacks,
    "foolbox": with_foolbox,
    "robustness": with_robustness,
    "art": with_art,
}


class WeightGradients(TorchDispatchMode):
    """Counts convolution backwards that computed a weight gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.count += bool(args[-1][1])
        self.count += func is torch.ops.fastadv.conv3x3_weight.default
        return func(*args, **(kwargs or {}))


def computes_weight_gradients(call: Callable[[], object]) -> bool:
    with WeightGradients() as counted:
        call()
    return counted.count > 0


def bench(arch: str, options: argparse.Namespace, results: Results) -> None:
    """Time every library on one architecture."""
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch, 224, 224, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    device, half = torch.device(options.device), options.precision == "bf16"
    images = images.permute(0, 3, 1, 2).to(device)
    pixels = images.float().contiguous() / 255  # NCHW, as peers' users have them
    labels = torch.randint(0, 1000, (options.batch,), generator=generator).to(device)

    def network() -> NormalizedModel:
        return create_model(arch, 1000, seed=0).to(device)

    dtype = torch.bfloat16 if half else None
    model = network().eval().to(memory_format=torch.channels_last)
    view = AttackView(model, dtype=dtype)

    def pgd() -> PGD:
        # One for each case: an attack keeps one recording, which cases that share it
        # would take from each other.
        return PGD(ThreatModel("l2", EPS), STEPS, STEP_SIZE, dtype=dtype)

    attack, judge, trainer = pgd(), pgd(), pgd()
    ran_by = {"fastadv": attack, "fastadv, judged": judge, "train, PGD-3": trainer}
    plain = (Autocast(network()) if half else network()).eval()
    trained = network().train().to(memory_format=torch.channels_last)
    trained_view = AttackView(trained, dtype=dtype)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.0)
    net = methods.Net(trained, options.precision)
    standard = methods.Method(net)
    attacked = methods.Method(net, trainer, trained_view)

    def ours() -> Tensor:
        view.refresh()  # part of every training step, so part of the price
        return attack.perturb(view, images, labels)[0]

    def judged() -> Tensor:
        view.refresh()
        return judge(view, images, labels).x_adv

    def plain_train() -> object:
        no_context = contextlib.nullcontext()
        with mock.patch.object(methods, "quick_convs", return_value=no_context):
            return train_step(trained, images, labels, optimizer, method=standard)

    cases: dict[str, Callable[[], object]] = {
        "fastadv": ours,
        "fastadv, judged": judged,
        "refresh": view.refresh,
        "train, torch": plain_train,
        "train": lambda: train_step(
            trained, images, labels, optimizer, method=standard
        ),
        "train, PGD-3": lambda: train_step(
            trained, images, labels, optimizer, method=attacked
        ),
    }
    found = {"fastadv": ours()}
    for name in options.peers:
        build = PEERS[name]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call = build(plain)
                found[name] = call(pixels, labels)
        except ImportError as error:
            print(f"{name} is left out: {error}")
            continue
        cases[name] = lambda call=call: call(pixels, labels)
    for name, x_adv in found.items():
        worst = (x_adv - found["fastadv"]).abs().max().item()
        print(f"{name}: differs from fastadv by at most {worst:.1e}")
    weights = {name: computes_weight_gradients(call) for name, call in cases.items()}
    # On CUDA the second batch of a shape is recorded: what counts is from the third on.
    warmup = 3 if device.type == "cuda" else 1
    times = interleaved(cases, repeats=options.repeats, warmup=warmup, device=device)
    modes = {name: made.compile_report().mode for name, made in ran_by.items()}
    wanted = "graph" if device.type == "cuda" else "eager"
    if any(mode != wanted for mode in modes.values()):
        reasons = {name: made.compile_report().reason for name, made in ran_by.items()}
        raise SystemExit(f"expected {wanted} everywhere, ran {modes}: {reasons}")
    for name, timing in times.items():
        # What a training step is compared with is a clean one on PyTorch's convolutions.
        mine = times["train, torch" if name.startswith("train") else "fastadv"]
        results.compare(
            name,
            timing,
            mine,
            images=options.batch,
            arch=arch,
            device=str(device),
            precision=options.precision,
            batch=options.batch,
            steps=STEPS,
            ran=modes.get(name),
            weight_gradients=weights[name],
            keep_freed_memory=options.keep_freed_memory,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[*PEERS])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--name", default="attack")
    parser.add_argument(
        "--keep-freed-memory",
        action="store_true",
        help="for the whole process, peers too, as the commands do for themselves",
    )
    options = parser.parse_args()
    if options.keep_freed_memory and not keep_freed_memory():
        parser.error("--keep-freed-memory needs glibc")
    results = Results(options.name)
    for arch in options.arch:
        bench(arch, options, results)
    results.write()


if __name__ == "__main__":
    main()
