"""The first look at a GPU, one stage in each process; `bench/gpu.sh` runs them in order.

    python bench/gpu_first.py STAGE [--seconds 60] [--device cuda] [--small]

Every finding is one JSON line, written at once to gpu_first.jsonl in the folder that
FASTADV_BENCH names (else bench/results): what was measured, or the error. A stage that runs
out of its seconds says so and ends. `--device cpu --small` rehearses it.

Stages: `facts` of the machine; `clusters`, values of the single-pass L2 kernel over many
rounds; `step_times`, device time of the step in every variant against a copy; `attacks`,
PGD-3 in every mode and training steps; `peers`, the same attack as others write it;
`launches`, few launches of each kernel, for compute-sanitizer and ncu.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))
import kernel_cases as kc
from harness import RESULTS, buffer_sets, device_timing, interleaved

from fastadv import PGD, AttackView, ThreatModel, create_model, kernels
from fastadv.attacks.compiled import CompileMode
from fastadv.environment import provenance
from fastadv.kernels import _cuda
from fastadv.training.methods import Method, Net
from fastadv.training.step import train_step

FULL = kc.Dtypes(kc.F32, kc.F32, kc.F32)
BYTES = {None: 0, kc.U8: 1, kc.F16: 2, kc.BF16: 2, kc.F32: 4}
# Backend, and the least size of a cluster in the single pass (0: two passes).
VARIANTS = (("cuda", None), ("cuda", 0), ("cuda", 16), ("triton", None))


class Stage:
    """The choices of this process, what it has left of its time, and where findings go."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.began = time.monotonic()
        self.seconds: float = options.seconds
        self.small: bool = options.small
        self.device = torch.device(options.device)
        self.cuda = self.device.type == "cuda"
        self.name: str = options.stage
        RESULTS.mkdir(parents=True, exist_ok=True)
        self._lines = open(RESULTS / "gpu_first.jsonl", "a", buffering=1)  # noqa: SIM115

    def say(self, **row: Any) -> None:
        """Write one finding."""
        at = round(time.monotonic() - self.began, 1)
        text = json.dumps({"stage": self.name, **row, "at": at}, default=str)
        print(text, flush=True)
        self._lines.write(text + "\n")

    def over(self, needed: float = 5) -> bool:
        """Return whether fewer than so many seconds are left, which is then said once."""
        left = self.seconds - (time.monotonic() - self.began)
        if left < needed:
            self.say(cut=f"{left:.0f} s are left")
        return left < needed


def facts(stage: Stage) -> None:
    """What the machine is, which backends run, and what clusters it takes."""
    if stage.cuda:
        found = torch.cuda.get_device_properties(0)
        fields = "name,driver_version,clocks.sm,clocks.max.sm,power.limit"
        query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            said = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        except OSError as error:
            said = str(error)
        stage.say(
            gpu=found.name,
            multiprocessors=found.multi_processor_count,
            l2=found.L2_cache_size,
            memory=found.total_memory,
            smi=said,
        )
    stage.say(**provenance())
    for name, backend in kernels.BACKENDS.items():
        stage.say(backend=name, declines=backend.unavailable_reason())
    if stage.cuda and _cuda.unavailable_reason() is None:
        for shape, expected in kc.ROUNDS:
            step = kc.make_step("l2", (1, *shape[1:]), kc.HALF_TRAINING, device="cuda")
            stage.say(
                side=shape[2], cluster=_cuda.cluster_size(step), expected=expected
            )


def clusters(stage: Stage) -> None:
    """Values of the single pass over many rounds, in all dtypes, the same bits each time."""
    backend = "cuda" if stage.cuda else "reference"
    cases = [((7, 3, 32, 32), 1)] if stage.small else kc.ROUNDS
    for shape, _ in cases:
        for dtypes in kc.ROUNDS_DTYPES:
            for layout in ("channels_last", "nchw"):
                if stage.over():
                    return
                case = {"shape": shape, "dtypes": str(dtypes), "layout": layout}
                try:
                    with kernels.use_backend(backend):
                        repeats = 30 if stage.cuda else 2
                        device = stage.device.type
                        kc.check_rounds(shape, dtypes, layout, device, repeats=repeats)
                    stage.say(**case, right=True)
                except AssertionError as error:
                    stage.say(**case, right=False, error=str(error)[:500])


def step_times(stage: Stage) -> None:
    """Device time of the step in every variant, against a copy of as many bytes."""
    variants = VARIANTS if stage.cuda else (("cpp", None),)
    batches = (2,) if stage.small else (64, 256, 8, 20)
    side = 32 if stage.small else 224
    for dtypes in (kc.HALF_TRAINING, FULL):
        for batch in batches:
            for norm in ("l2", "linf"):
                if stage.over(8):
                    return
                _time_steps(stage, (batch, 3, side, side), dtypes, norm, variants)


def _time_steps(
    stage: Stage,
    shape: tuple[int, ...],
    dtypes: kc.Dtypes,
    norm: str,
    variants: tuple[tuple[str, int | None], ...],
) -> None:
    step = kc.make_step(norm, shape, dtypes, "channels_last", stage.device.type)
    dtypes_moved = (dtypes.state, dtypes.state, dtypes.x0, dtypes.grad, dtypes.z)
    moved = step.x.numel() * sum(BYTES[d] for d in dtypes_moved)
    sets = buffer_sets(moved, stage.device)

    def copied() -> kc.StepCase:
        tensors = {k: v.clone() for k, v in vars(step).items() if isinstance(v, Tensor)}
        return replace(step, **tensors)

    steps = [copied() for _ in range(sets)]
    sources = [torch.rand(moved // 8, device=stage.device) for _ in range(sets)]
    targets = [torch.empty_like(source) for source in sources]
    pairs = list(zip(sources, targets, strict=True))

    def timed(calls: list[Callable[[], object]]) -> Any:
        return device_timing(calls, repeats=9, device=stage.device)

    copy = timed([lambda s=s, t=t: t.copy_(s) for s, t in pairs]).median
    for backend, least in variants:
        row = {
            "norm": norm,
            "dtypes": str(dtypes),
            "batch": shape[0],
            "backend": backend,
            "least_cluster": least,
            "copy_gb_per_s": round(moved / copy / 1e9, 1),
        }
        _cuda.SINGLE_PASS = least
        try:
            with kernels.use_backend(backend):
                time_ = timed([each.run for each in steps])
                if backend == "cuda":
                    row["cluster"] = _cuda.cluster_size(step)
        except Exception as error:
            stage.say(**row, error=f"{type(error).__name__}: {error}"[:500])
            continue
        finally:
            _cuda.SINGLE_PASS = None
        stage.say(
            **row,
            us=round(1e6 * time_.median, 2),
            us_range=[round(1e6 * time_.low, 2), round(1e6 * time_.high, 2)],
            host_us=round(1e6 * time_.host[0], 1) if time_.host else None,
            gb_per_s=round(moved / time_.median / 1e9, 1),
            of_copy=round(copy / time_.median, 3),
        )


def attacks(stage: Stage) -> None:
    """PGD-3 in every mode, a profile of one attack, and training steps."""
    arch, images, labels = _batch(stage)
    model = _network(stage, arch).eval()
    first: list[Tensor] = []

    def attack(mode: CompileMode) -> None:
        _attack(stage, arch, model, mode, images, labels, first)

    def train(precision: str, steps: int) -> None:
        _train(stage, arch, precision, steps, images, labels)

    if stage.small:
        parts = [partial(attack, "off"), partial(train, "fp32", 3)]
    else:  # what compiles for half a minute comes after what decides more
        parts = [partial(attack, mode) for mode in ("off", "graph")]
        parts += [partial(train, "bf16", steps) for steps in (0, 3)]
        parts += [partial(attack, "full")]
        parts += [
            partial(train, p, steps) for p in ("fp16", "fp32") for steps in (0, 3)
        ]
        parts += [partial(attack, "inductor")]
    for part in parts:
        if stage.over(12):
            return
        part()


def _attack(
    stage: Stage,
    arch: str,
    model: Any,
    mode: CompileMode,
    images: Tensor,
    labels: Tensor,
    first: list[Tensor],
) -> None:
    dtype = None if stage.small else torch.bfloat16
    # Each has a recording and a view of its own.
    attack = PGD(ThreatModel("l2", 3.0), 3, 2.0, dtype=dtype, compile=mode)
    view = AttackView(model, dtype=dtype)

    def run() -> Tensor:
        view.refresh()
        return attack.perturb(view, images, labels)[0]

    try:
        timing = _timed(stage, run)
        first.append(run())
    except Exception as error:
        stage.say(arch=arch, attack=mode, error=f"{error}"[:500])
        return
    ran = attack.compile_report()
    apart = (first[-1] - first[0]).flatten(1).norm(dim=1).max().item()
    _tell(
        stage,
        len(images),
        timing,
        arch=arch,
        attack=mode,
        ran=ran.mode,
        reason=ran.reason,
        furthest_from_first=apart,
    )
    if mode == "off" and stage.cuda:
        _profile(run)


def _train(
    stage: Stage, arch: str, precision: str, steps: int, images: Tensor, labels: Tensor
) -> None:
    trained = _network(stage, arch).train()
    optimizer = torch.optim.SGD(
        trained.parameters(), lr=1e-4, momentum=0.9, fused=stage.cuda or None
    )
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    net, attack = Net(trained, precision), None
    if steps:
        attack = PGD(ThreatModel("l2", 3.0), steps, 2.0, dtype=dtype)
        method = Method(net, attack, AttackView(trained, dtype=dtype))
    else:
        method = Method(net)
    row = {"arch": arch, "training": f"PGD-{steps}" if steps else "clean"}
    row["precision"] = precision

    def update() -> object:
        return train_step(trained, images, labels, optimizer, method=method)

    try:
        timing = _timed(stage, update)
        loss = train_step(trained, images, labels, optimizer, method=method).loss
    except Exception as error:
        stage.say(**row, error=f"{error}"[:500])
        return
    ran = None if attack is None else attack.compile_report().mode
    _tell(stage, len(images), timing, **row, ran=ran, loss=loss.item())


def peers(stage: Stage) -> None:
    """The same attack as other libraries write it, on the same network and batch."""
    from bench_attack import STEPS, Autocast, with_loop

    arch, images, labels = _batch(stage)
    pixels = images.float().contiguous() / 255
    for precision in ("fp32",) if stage.small else ("bf16", "fp32"):
        for layout in (torch.channels_last, torch.contiguous_format):
            model = _network(stage, arch).eval().to(memory_format=layout)
            model.requires_grad_(False)  # the tuned loop computes no weight gradients
            plain = Autocast(model) if precision == "bf16" else model
            given = pixels.contiguous(memory_format=layout)
            for name, build in (("loop", with_loop), ("robustness", as_robustness)):
                if name == "robustness" and layout is torch.channels_last:
                    continue  # it takes views of the gradient that this layout has not
                if stage.over(5):
                    return
                row = {"arch": arch, "peer": name, "steps": STEPS}
                row |= {"precision": precision, "layout": str(layout)}
                # `robustness` itself leaves the weights' gradients on.
                model.requires_grad_(name == "robustness")
                try:
                    call = build(plain)
                    timing = _timed(stage, lambda call=call, x=given: call(x, labels))
                except Exception as error:
                    stage.say(**row, error=f"{error}"[:300])
                    continue
                _tell(stage, len(images), timing, **row)


def as_robustness(model: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Return PGD-3 with the operations of the package `robustness`, which need not be here.

    Its `L2Step` (Engstrom et al. 2019) normalises the gradient, moves, and projects by
    `renorm`, one operation at a time; every step copies the images and differentiates the
    mean loss. `bench_attack.py` runs the package itself.
    """

    def attack(x: Tensor, y: Tensor) -> Tensor:
        begun = x.detach()
        for _ in range(3):
            x = x.clone().detach().requires_grad_(True)
            losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
            (grad,) = torch.autograd.grad(losses.mean(), [x])
            with torch.no_grad():
                length = torch.norm(grad.view(len(grad), -1), dim=1).view(-1, 1, 1, 1)
                moved = x + 2.0 * grad / (length + 1e-10)
                delta = (moved - begun).renorm(p=2, dim=0, maxnorm=3.0)
                x = torch.clamp(begun + delta, 0, 1)
        return x.detach()

    return attack


def launches(stage: Stage) -> None:
    """Few launches of each kernel on a large batch, for a tool that watches them."""
    backend = "cuda" if stage.cuda else "reference"
    side, batch = (32, 2) if stage.small else (224, 70)
    with kernels.use_backend(backend):
        for dtypes in kc.ROUNDS_DTYPES:
            for norm in ("l2", "linf"):
                for least in (None, 0) if norm == "l2" else (None,):
                    _cuda.SINGLE_PASS = least
                    step = kc.make_step(
                        norm,
                        (batch, 3, side, side),
                        dtypes,
                        "channels_last",
                        stage.device.type,
                    )
                    for _ in range(2):
                        step.run()
        kc.make_apgd("l2", (batch, 3, side, side), device=stage.device.type).run()
        kernels.ball_init(step.x0, norm="l2", eps=step.eps, seed=1, offset=0)
        if stage.cuda:
            torch.cuda.synchronize()
    _cuda.SINGLE_PASS = None
    stage.say(launched=True)


# ---- parts ----


def _batch(stage: Stage) -> tuple[str, Tensor, Tensor]:
    arch, batch, side = ("resnet50", 256, 224)
    if stage.small:
        arch, batch, side = ("resnet18_cifar", 4, 32)
    draw = torch.Generator().manual_seed(0)
    shape = (batch, side, side, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 100, (batch,), generator=draw)
    return arch, images.permute(0, 3, 1, 2).to(stage.device), labels.to(stage.device)


def _network(stage: Stage, arch: str) -> Any:
    made = create_model(arch, 100, seed=0).to(stage.device)
    return made.to(memory_format=torch.channels_last)


def _timed(stage: Stage, call: Callable[[], object]) -> Any:
    repeats, warmup = (7, 3) if stage.cuda else (1, 1)
    found = interleaved({"": call}, repeats=repeats, warmup=warmup, device=stage.device)
    return found[""]


def _tell(stage: Stage, batch: int, timing: Any, **row: Any) -> None:
    memory = torch.cuda.max_memory_allocated() / 2**30 if stage.cuda else None
    stage.say(
        **row,
        batch=batch,
        ms=round(1e3 * timing.median, 3),
        ms_range=[round(1e3 * timing.low, 3), round(1e3 * timing.high, 3)],
        host_ms=round(1e3 * timing.host[0], 3) if timing.host else None,
        images_per_s=round(batch / timing.median, 1),
        peak_gib=memory,
    )


def _profile(run: Callable[[], object]) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as traced:
        run()
        torch.cuda.synchronize()
    table = traced.key_averages().table(
        sort_by="self_device_time_total", row_limit=25, max_name_column_width=90
    )
    (RESULTS / "attack_profile.txt").write_text(table)


STAGES = {
    each.__name__: each
    for each in (facts, clusters, step_times, attacks, peers, launches)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    stage = Stage(parser.parse_args())
    try:
        STAGES[stage.name](stage)
        stage.say(ended=True)
    except Exception as error:
        stage.say(ended=False, error=f"{type(error).__name__}: {error}"[:500])
        traceback.print_exc()
        sys.stdout.flush()
        os._exit(1)  # a device in error may hang at exit


if __name__ == "__main__":
    main()
