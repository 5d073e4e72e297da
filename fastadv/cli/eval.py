"""fastadv-eval: clean accuracy, and accuracy under attack, of a checkpoint on a data set."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastadv.cli import common
from fastadv.evaluation.config import EvaluationConfig
from fastadv.flags import PrintJson
from fastadv.threat import ThreatModel

PROG = "fastadv-eval"


@dataclass(frozen=True, kw_only=True)
class EvalCommand(EvaluationConfig):  # noqa: D101, it shows the help of its base
    __doc__ = EvaluationConfig.__doc__

    json: PrintJson = False


def _body(argv: list[str]) -> None:
    command = common.parse(EvalCommand, argv, PROG)
    from fastadv.evaluation.source import evaluate_checkpoint

    evaluated = evaluate_checkpoint(command)
    result = evaluated.result
    if command.json:
        print(json.dumps(result))
        return
    row = command.checkpoint.startswith("row:")  # its file has a hash for a name
    name = evaluated.rows[0].source.name if row else result["checkpoint"]
    print(f"{name} ({result['arch']}) on {result['data']}")
    print(f"  images: {result['prepared']}")
    _print_share("clean", result["clean_acc"], result["clean_ci"], result["n"])
    if "robust_acc" in result:
        _print_robust(result)
    else:
        print("  no attack: the checkpoint states no radius; give --eps for one")
    for key, how in (("clean_metric", "clean"), ("robust_metric", "attacked")):
        if key in result:
            name = f"{result['metric']}, {how}"
            _print_share(name, result[key], result[f"{key}_ci"], result["n"])
    for warning in result["warnings"]:
        print(f"  warning: {warning}")
    if result["bad_images"]:
        print(f"{result['bad_images']} unreadable image(s) were left out")


def _print_robust(result: dict[str, Any]) -> None:
    threat = ThreatModel(result["norm"], result["eps"])
    what = f"{result['attack']} {threat}"
    if result["attack"] == "pgd":
        what = (
            f"PGD-{result['num_steps']} {threat}, {result['num_restarts']} restart(s), "
            f"{result['objective']}"
        )
    if len(result["stages"]) > 1:
        for stage in result["stages"]:
            name = f"after {stage['name']} ({stage['seconds']:.1f} s)"
            _print_share(name, stage["robust_acc"], stage["robust_ci"], result["n"])
    if result["flags"]:
        what += f", doubtful ({', '.join(result['flags']).replace('_', ' ')})"
    _print_share(what, result["robust_acc"], result["robust_ci"], result["n"])
    if passes := result.get("passes"):
        print(f"  {passes / result['n']:.1f} passes of each image through the network")


def _print_share(what: str, value: float, ci: Sequence[float], n: int) -> None:
    low, high = (100 * bound for bound in ci)
    print(f"  {what}: {100 * value:.2f} % [{low:.1f}, {high:.1f}] of {n}")


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
