"""fastadv-doctor: versions, devices, and which kernel backend runs and why."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from fastadv.cli import common
from fastadv.errors import BackendError
from fastadv.flags import PrintJson
from fastadv.machine import platform_support

PROG = "fastadv-doctor"


@dataclass(frozen=True, kw_only=True)
class DoctorCommand:
    """Show versions, devices, and which kernel backend will run and why others decline."""

    json: PrintJson = False


def examine() -> dict[str, Any]:
    """Return everything that `fastadv-doctor` prints, as plain values."""
    import torch

    from fastadv.environment import provenance
    from fastadv.kernels import BACKENDS, forced_backend
    from fastadv.kernels.registry import Operands, select

    devices = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    backends = {
        info.name: {"what": info.summary, "declines": info.unavailable_reason()}
        for info in BACKENDS.values()
    }
    chosen = {}
    for device in devices:
        x = torch.zeros(1, 3, 8, 8, device=device)
        operands = Operands("pgd_step", {"x": x, "x0": x, "grad": x})
        try:
            chosen[device], _ = select(operands)
        except BackendError as error:
            chosen[device] = f"nothing: {error}"
    report = {
        "platform": platform_support(),
        "environment": provenance(),
        "devices": devices,
        "backends": backends,
        "forced": forced_backend(),
        "runs": chosen,
    }
    if backends["cuda"]["declines"] is None:
        report["single_pass_blocks"] = _blocks_of_a_sample()
    if backends["cpp"]["declines"] is None:
        from fastadv.kernels._cpp import isa

        report["instruction_set"] = isa()
    return report


def _blocks_of_a_sample() -> int:
    """Return the thread blocks that hold a sample of 224 px in an L2 step; 0 for two passes.

    A share of a GPU (MIG, MPS) may have too few multiprocessors together for them.
    """
    import torch

    from fastadv.kernels._cuda import cluster_size
    from fastadv.kernels.step import Step

    x = torch.zeros(1, 3, 224, 224, device="cuda")
    each, channel = x.new_ones(1), x.new_ones(3)
    blocks: int = cluster_size(Step(x, x, x, each, each, channel, channel, "l2", None))
    return blocks


def report_text(report: dict[str, Any]) -> str:
    """Return what `examine` returned for a terminal."""
    lines = [report["platform"], "versions and machine"]
    for name, value in report["environment"].items():
        lines.append(f"  {name:20} {value if value is not None else 'not installed'}")
    lines.append("kernel backends, in order of preference")
    for name, info in report["backends"].items():
        state = f"no: {info['declines']}" if info["declines"] else "available"
        if name == "cpp" and "instruction_set" in report:
            state += f" ({report['instruction_set']})"
        if name == "cuda" and "single_pass_blocks" in report:
            blocks = report["single_pass_blocks"]
            what = f"{blocks} blocks a sample" if blocks else "two passes"
            state += f" (L2 at 224 px: {what})"
        lines.append(f"  {name:20} {state}")
    if report["forced"]:
        lines.append(f"forced by FASTADV_BACKEND: {report['forced']}")
    lines.append("what runs")
    lines += [f"  {device:20} {name}" for device, name in report["runs"].items()]
    return "\n".join(lines)


def _body(argv: list[str]) -> None:
    command = common.parse(DoctorCommand, argv, PROG)
    report = examine()
    common.show(command, report, report_text(report))


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
