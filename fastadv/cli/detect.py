"""fastadv-detect: object detection and instance segmentation on pretrained networks.

Trains torchvision's Faster R-CNN or Mask R-CNN on the stages of a source, and measures the
average precision of what was trained: clean, under attack, and corrupted. Exports it to ONNX.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from fastadv.cli import common
from fastadv.cli.flagrules import commands_help
from fastadv.cli.train import Devices, Steps, without_rank_flags
from fastadv.cli.trainwords import (
    check_resumable,
    plain_resume,
    resumed,
    resumes_or_starts,
)
from fastadv.detection.config import DetectTrainConfig
from fastadv.detection.eval_config import DetectEvalConfig, DetectExportConfig
from fastadv.errors import EXIT_OK, EXIT_USAGE, ConfigError, unknown_name
from fastadv.flags import PrintJson
from fastadv.ranges import ordered_values
from fastadv.results.row import Row

PROG, MODULE = "fastadv-detect", "fastadv.cli.detect"


@dataclass(frozen=True, kw_only=True)
class DetectTrainCommand(DetectTrainConfig):  # noqa: D101, it shows the help of its base
    __doc__ = DetectTrainConfig.__doc__

    dry_run: bool = False
    """Open the set, build the detector, and stop."""
    plan: Devices | None = None
    """Measure 10 steps, print memory, time and device-hours of the whole run on these
    numbers of devices, and stop. Without numbers: 1 and 8."""
    profile: Steps | None = None
    """Measure where the time of N steps goes, and write it and a trace in the run
    directory. Without a number: 20 steps."""
    nproc: int | None = None
    """Start N processes on this machine, one for each GPU, or all on the CPU."""
    json: PrintJson = False


def _train(argv: list[str]) -> int:
    words = resumed(plain_resume(argv))
    command = common.parse(DetectTrainCommand, words, f"{PROG} train")
    config = DetectTrainConfig(**ordered_values(command, DetectTrainConfig))
    if config.resume and not resumes_or_starts(argv):
        check_resumable(config.out_path)
    if command.plan is not None:
        from fastadv.detection.plan import plan_detection

        found = plan_detection(config, command.plan)
        return common.show(command, found.to_dict(), found.text())
    if command.nproc is not None:
        from fastadv.runs.launch import launch

        return launch(MODULE, command.nproc, ["train", *without_rank_flags(argv)])

    from fastadv.detection.runlog import ap_text
    from fastadv.detection.trainer import DetectorTrainer
    from fastadv.runs.distributed import join_ranks

    with join_ranks(config.device) as world:
        trainer = DetectorTrainer(
            config, dry_run=command.dry_run, world=world, profile=command.profile
        )
        if command.dry_run:
            trainer.describe()
            return EXIT_OK
        summary = trainer.fit()
    if world.leads:
        values = dataclasses.asdict(summary) | {"run": str(summary.run)}
        text = f"{ap_text(summary.metrics)}\nrun: {summary.run}"
        return common.show(command, values, text)
    return EXIT_OK


@dataclass(frozen=True, kw_only=True)
class DetectEvalCommand(DetectEvalConfig):  # noqa: D101, it shows the help of its base
    __doc__ = DetectEvalConfig.__doc__

    json: PrintJson = False


def _eval(argv: list[str]) -> int:
    command = common.parse(DetectEvalCommand, argv, f"{PROG} eval")
    from fastadv.detection.evaluating import average_precisions, evaluate_detector_file

    config = DetectEvalConfig(**ordered_values(command, DetectEvalConfig))

    def note(condition: str, rows: list[Row]) -> None:
        if not command.json:
            print(f"{condition}: {average_precisions(rows)}", flush=True)

    found = evaluate_detector_file(config, note)
    values = {
        condition: {row.metric: [row.value, row.low, row.high] for row in rows}
        for condition, rows in found.items()
    }
    return common.show(command, values, f"rows: {config.results}")


@dataclass(frozen=True, kw_only=True)
class DetectExportCommand(DetectExportConfig):  # noqa: D101, it shows the help of its base
    __doc__ = DetectExportConfig.__doc__

    json: PrintJson = False


def _export(argv: list[str]) -> int:
    command = common.parse(DetectExportCommand, argv, f"{PROG} export")
    from fastadv.detection.export import export_detector_file

    config = DetectExportConfig(**ordered_values(command, DetectExportConfig))
    path = export_detector_file(config)
    return common.show(command, {"out": str(path)}, f"written: {path}")


COMMANDS = {
    "train": (DetectTrainCommand, _train),
    "eval": (DetectEvalCommand, _eval),
    "export": (DetectExportCommand, _export),
}


def _body(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
        print(commands_help(PROG, __doc__, kinds))
        return EXIT_OK if argv else EXIT_USAGE
    if argv[0] not in COMMANDS:
        raise ConfigError(unknown_name("command", argv[0], COMMANDS))
    return COMMANDS[argv[0]][1](argv[1:])


main = functools.partial(common.run, PROG, _body)

if __name__ == "__main__":
    raise SystemExit(main())
