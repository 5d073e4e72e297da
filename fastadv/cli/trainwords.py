"""The words of a fastadv-train command line before tyro reads them."""

from __future__ import annotations

import difflib
from pathlib import Path

from fastadv.cli.words import flag_value
from fastadv.errors import ConfigError

# Flags of a try-out: training on a small built-in set that a processor learns in minutes,
# with a radius that its bold shapes let a network withstand.
_TRY_OUT_EPOCHS = 45
_TRY_OUT = {
    "--data": "shapetex_bold",
    "--resolution": "32",
    "--num-train": "1100",
    "--batch-size": "32",
    "--eval-images": "240",
}


def resumes_or_starts(argv: list[str]) -> bool:
    """Return whether `argv` says `--resume auto`."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return "--resume=auto" in argv or ("--resume", "auto") in pairs


def check_resumable(run: Path) -> None:
    """Raise ConfigError unless a run was begun in the folder `run`."""
    from fastadv.runs.directory import RunDirectory

    if RunDirectory(run).began or (run / "config.yaml").exists():
        return
    folder = run.parent
    others = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(run.name, others, n=3)
    meant = (
        f" Perhaps you meant {', '.join(str(folder / n) for n in near)}."
        if near
        else ""
    )
    raise ConfigError(
        f"`resume`: there is no run in {run} to continue.{meant} Check `out`; "
        "--resume auto starts the run where there is none"
    )


def plain_resume(argv: list[str]) -> list[str]:
    """Return `argv` with `--resume` for `--resume auto`."""
    words: list[str] = []
    for word in argv:
        if word == "auto" and words[-1:] == ["--resume"]:
            continue
        words.append("--resume" if word == "--resume=auto" else word)
    return words


def resumed(argv: list[str]) -> list[str]:
    """Return `argv` with the config of the run that --resume and --out name, if any."""
    out = flag_value(argv, "--out", "--out-dir")
    given = flag_value(argv, "--config") is not None
    if "--resume" not in argv or out is None or given:
        return argv
    saved = Path(out).expanduser() / "config.yaml"
    if saved.parent.is_dir() and not (saved.exists() and saved.read_bytes().strip()):
        from fastadv.runs.directory import RunDirectory

        RunDirectory(saved.parent).restore_config()
    return ["--config", str(saved), *argv] if saved.exists() else argv


def tried_out(argv: list[str]) -> list[str]:
    """Return `argv` with the flags of a try-out if it names neither data nor a file.

    What is given stays: with an optimiser or a learning rate both are left as they are,
    with a schedule that one.
    """
    if any(flag_value(argv, name) is not None for name in ("--data", "--config")):
        return argv
    if {"-h", "--help", "--help-all"} & set(argv):
        return argv
    words = dict(_TRY_OUT)
    given = flag_value(argv, "--epochs")
    epochs = int(given) if given is not None and given.isdecimal() else _TRY_OUT_EPOCHS
    words |= {"--epochs": str(epochs), "--eval-every": str(max(epochs, 1))}
    if flag_value(argv, "--method") != "standard":
        words["--clean-epochs"] = str(epochs // 5)
        words["--eps-warmup"] = str(3 * epochs // 10)
    if not any(flag_value(argv, name) for name in ("--optimizer", "--lr")):
        small = (flag_value(argv, "--arch") or "").endswith("_cifar")
        words |= {"--optimizer": "adamw", "--lr": "3e-3" if small else "1e-3"}
    if not any(flag_value(argv, name) for name in ("--schedule", "--milestones")):
        # The learning rate is highest at once: it is still large when the radius is reached.
        words |= {"--schedule": "onecycle", "--peak": "0.03"}
    missing = [name for name in words if flag_value(argv, name) is None]
    return [*argv, *(word for name in missing for word in (name, words[name]))]
