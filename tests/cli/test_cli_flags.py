"""Flags: their spellings, files under them, help, and what is refused with exit 2."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import COMMANDS, Caller
from flag_list import LISTED, commands, flag_list
from small_runs import environment, execute, flags, script

from fastadv.cli import common
from fastadv.cli.eval import EvalCommand
from fastadv.cli.train import TrainCommand
from fastadv.cli.transfer import TransferCommand
from fastadv.training import TrainConfig

HELP_SECONDS = 0.5


# ---- help ----


def _cpu_seconds(words: list[str]) -> tuple[float, str]:
    """CPU time of a process: what it costs, however busy the machine is."""
    process = subprocess.Popen(
        words, env=environment(), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime, out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_quick_and_documents_every_flag(name: str) -> None:
    runs = [_cpu_seconds([script(f"fastadv-{name}"), "--help"]) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < HELP_SECONDS
    text = runs[0][1]
    assert f"usage: fastadv-{name}" in text
    if name == "train":
        wanted = "epochs batch-size lr weight-decay schedule num-steps step-size"
        wanted += " random-start seed out resume device precision backend norm eps data"
        assert [f for f in wanted.split() if f"--{f}" not in text] == []
        assert (
            text.count("\n\u2502 --") <= 42
        )  # about forty; --help-all has the rarer ones
        everything = _cpu_seconds([script("fastadv-train"), "--help-all"])[1]
        flags = {f.name.replace("_", "-") for f in dataclasses.fields(TrainConfig)}
        assert [f for f in flags if f"--{f}" not in everything] == []
        rare = {f.replace("_", "-") for f in TrainConfig.RARE}
        assert [f for f in rare if f"\u2502 --{f}" in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name: str) -> None:
    program = (
        "import sys\n"
        f"from fastadv.cli.{name} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stopped: print('code', stopped.code)\n"
        "heavy = 'torch torchvision sklearn pyarrow matplotlib numba scipy'.split()\n"
        "print('heavy', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-2:] == ["code 0", "heavy []"]


@pytest.mark.parametrize("prog", sorted(commands()))
def test_help_is_plain(
    prog: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        common.parse(commands()[prog], ["--help-all"], prog)
    # Boxes are left out where the encoding of the output cannot show them.
    entries = re.split(r"\n[ \u2502] (?=\S)", capsys.readouterr().out)[1:]
    assert len(entries) == len(dataclasses.fields(commands()[prog])) + 1
    for entry in entries:
        assert "None" not in entry  # what a flag is without a value is said in words
        assert len(re.findall(r"[Dd]efault:", entry)) <= 1
        assert re.search(r"  [A-Z][^\n]*[a-z]|show this help", entry), entry


def test_every_command_says_its_version(call: Caller) -> None:
    for name in COMMANDS:
        result = call(name, "--version")
        assert (result.code, result.err) == (0, "")
        assert re.fullmatch(r"fastadv \d+\.\d+\.\d+\n", result.out)


# ---- spellings ----


def test_flags_are_those_of_the_committed_list() -> None:
    # A change that is meant: python tests/helpers/flag_list.py
    assert flag_list().splitlines() == LISTED.read_text().splitlines()


def _train(*words: str) -> TrainConfig:
    return common.parse(TrainCommand, words, "fastadv-train")


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (["--batch-size", "7"], ["--batch_size", "7"]),
        (["--num-steps", "5"], ["--attack-steps", "5"]),
        (["--step-size", "0.25"], ["--attack-lr", "0.25"]),
        (["--norm", "l2"], ["--constraint", "2"]),
        (["--norm", "linf", "--eps", "0.1"], ["--constraint", "inf", "--eps", "0.1"]),
        (["--out", "x"], ["--out-dir", "x"]),
        (["--eps", "2/255"], ["--eps", str(2 / 255)]),
        (["--norm", "linf"], ["--norm", "Linf", "--eps", "4/255"]),
        (["--weight-decay", "5e-4"], ["--weight_decay=0.0005"]),
    ],
)
def test_two_spellings(ours: list[str], other: list[str]) -> None:
    assert _train(*ours) == _train(*other)
    assert _train(*ours) != _train("--seed", "9")


def test_defaults_are_the_published_recipe() -> None:
    config = _train("--arch", "wide_resnet50_2", "--eps", "3")
    assert (config.norm, config.eps, config.num_steps) == ("l2", 3.0, 3)
    assert (config.lr, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
    assert (config.epochs, config.schedule) == (90, "step")
    assert config.resolve_batch_size(1_281_167) == 512
    assert config.resolve_batch_size(3800) == 128
    # Ours to round to what ranks can share, unless a user chose it.
    assert config.resolve_batch_size(300, 8) == 128
    assert config.resolve_batch_size(100, 8) == 96
    assert _train("--batch-size", "512").resolve_batch_size(300, 8) == 296
    assert _train("--batch-size", "100").resolve_batch_size(300, 8) == 100
    assert not config.random_start
    assert _train("--norm", "linf").eps == 4 / 255
    assert not _train("--eps", "0").adversarial
    names = {_train(*w.split()).out_path for w in ("--eps 0", "--eps 3", "--seed 4")}
    assert len(names) == 3


def test_eval_and_transfer_take_the_same_aliases() -> None:
    words = "--model-path a --dataset b "
    attack = words + "--attack-steps 7 --attack-lr 1/255 --constraint inf --eps 8/255"
    parsed = common.parse(EvalCommand, attack.split(), "fastadv-eval")
    assert (parsed.checkpoint, parsed.data, parsed.norm) == ("a", "b", "linf")
    assert (parsed.num_steps, parsed.step_size, parsed.eps) == (7, 1 / 255, 8 / 255)
    words += "--seeds 1 2 3 --lrs 0.1"
    moved = common.parse(TransferCommand, words.split(), "fastadv-transfer")
    assert (moved.source, moved.seeds, moved.lrs) == ("a", (1, 2, 3), (0.1,))


# ---- files under the flags ----


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("train", TrainCommand, "--data d --norm linf --eps 4/255 --random-start"),
        ("train", TrainCommand, "--lr 1e-5 --data ./x --milestones 0.75 0.9"),
        ("eval", EvalCommand, "--checkpoint c --data d --eps 1/255 --num-images 5"),
        (
            "transfer",
            TransferCommand,
            "--source s --dataset d --seeds 1 2 --lrs 1e-3 1",
        ),
    ],
)
def test_print_config_round_trip(
    name: str, kind: type[Any], words: str, call: Caller, tmp_path: Path
) -> None:
    printed = call(name, *words.split(), "--print-config")
    assert printed.code == 0
    file = tmp_path / "config.yaml"
    file.write_text(printed.out)
    assert call(name, "--config", file, "--print-config").out == printed.out
    assert call(name, f"--config={file}", "--print-config").out == printed.out
    direct = common.parse(kind, words.split(), name)
    assert common.parse(kind, ["--config", str(file)], name) == direct


def test_flags_go_over_the_file_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("random_start: true\nepochs: 7\nlr: 1e-3\neps: 8/255\nnorm: 2\n")
    base = ["--config", str(file)]
    config = _train(*base)
    assert (config.random_start, config.epochs, config.norm) == (True, 7, "l2")
    assert (config.lr, config.eps) == (0.001, 8 / 255)  # YAML 1.1 takes both for text
    assert _train(*base, "--random-start").random_start
    assert not _train(*base, "--no-random-start", "--epochs", "8").random_start
    assert _train(*base, "--epochs", "8").epochs == 8


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("epoch: 3", "unknown key 'epoch'; perhaps you meant: epochs"),
        ("batch-size: 3", "unknown key 'batch-size'; perhaps you meant: batch_size"),
        ("3: 4", "unknown key '3'"),
        ("epochs: many", "epochs: 'many' is not a value of type int"),
        ("epochs: 2.5", "epochs: 2.5 is not a value of type int"),
        ("resume: 1", "resume: 1 is not a value of type bool"),
        ("lr: fast", "lr: 'fast' is not a length"),
        ("lr: [0.1]", "lr: [0.1] is not a value of type float"),
        ("schedule: steps", "schedule: 'steps' is not one of step, cosine"),
        ("arch: resnet81", "unknown architecture 'resnet81'; perhaps you meant"),
        ("epochs: 0", "--epochs 0 cannot work; it must be at least 1"),
        ("- epochs", "must hold `key: value` lines"),
        ("a: b: c", "is not a YAML file"),
        ("a: !!python/object/apply:os.getcwd []", "is not a YAML file"),
        (None, "cannot read"),
    ],
)
def test_config_files_are_checked(
    text: str | None, complaint: str, call: Caller, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    if text is not None:
        file.write_text(text)
    result = call("train", "--config", file)
    assert result.code == 2
    message = " ".join(result.err.split())
    assert complaint in message
    assert "Traceback" not in message


# ---- what is refused ----


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--arch resnet81", "unknown architecture 'resnet81'; perhaps you meant:"),
        ("--arch wideresnet50_2", "wide_resnet50_2"),
        ("--norm linf --eps 4", "4 of 255 is 4/255 (0.0157). For l2 use --norm l2."),
        ("--eps 255", "255 of 255 is 1"),
        ("--eps 128 --arch resnet8_cifar", "sqrt(3 * 32^2) = 55.4"),
        ("--epochs 0", "--epochs 0 cannot work; it must be at least 1"),
        ("--num-steps 0", "--num-steps 0 cannot work"),
        ("--batch-size 0", "--batch-size 0 cannot work"),
        ("--lr 0", "--lr 0.0 cannot work; it must be above 0"),
        ("--lr nan", "--lr nan cannot work"),
        ("--momentum 1", "--momentum 1.0 cannot work; it must be in [0, 1)"),
        ("--device gpu", "--device 'gpu' is not a device; use auto, cpu, cuda"),
        ("--config FILE --norm linf", "--norm linf over a --config file needs --eps"),
        ("--config=FILE --norm=linf", "--norm linf over a --config file needs --eps"),
        ("--data digits --progressive 64", "--progressive 64 is above the 32 px of"),
        ("--data digits --num-train 99999", "which has 1297; use n <= 1297"),
        ("--data digits --num-train 5", "cannot contain all 10 classes"),
        ("--data digits --val-size 1297", "cannot give 1297 for validation"),
    ],
)
def test_values_that_cannot_work(
    words: str, complaint: str, call: Caller, tmp_path: Path
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("norm: l2\neps: 0.5\n")
    given = words.replace("FILE", str(file)).split()
    result = call("train", *given, "--out", tmp_path / "run")
    assert result.code == 2
    assert complaint in result.error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words", "complaint"),
    [
        ("train", "--ephocs 3", "--epochs"),
        ("train", "--norm l3", "accepted: l2 (or 2), linf (or inf)"),
        (
            "train",
            "--eps large",
            "is not a length in pixel units; write 3, 0.5 or 8/255",
        ),
        ("train", "--eps -1", "must be a finite number >= 0"),
        ("train", "--epochs two", "--epochs"),
        ("train", "--schedule linear", "onecycle"),
        ("eval", "--chekpoint x --data y", "--checkpoint"),
        ("transfer", "--source x", "--dataset"),
        ("transfer", "--source x --dataset y --mode fixed", "fixed_feature"),
        ("doctor", "--jsno", "--json"),
        ("demo", "--epoch 3", "--epochs"),
    ],
)
def test_wrong_flags_are_usage_errors_with_a_hint(
    name: str,
    words: str,
    complaint: str,
    call: Caller,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = call(name, *words.split())
    assert result.code == 2
    assert complaint in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("eval", "--num-steps 0"),
        ("eval", "--num-restarts 0"),
        ("eval", "--batch-size 0"),
        ("eval", "--resolution 0"),
        ("eval", "--num-images -1"),
        ("transfer", "--epochs 0"),
        ("transfer", "--resolution 0"),
        ("transfer", "--num-train 0"),
        ("transfer", "--val-fraction 1"),
        ("transfer", "--lrs 0"),
    ],
)
def test_numbers_out_of_range(name: str, words: str, call: Caller) -> None:
    where = {"eval": "--checkpoint x --data y", "transfer": "--source x --dataset y"}
    result = call(name, *where[name].split(), *words.split())
    assert result.code == 2
    flag, value = words.split()
    assert result.error.startswith(f"fastadv-{name}: {flag} {value}")
    assert "must be" in result.error


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    for words, code in (("--arch resnet81", 2), ("--ephocs 3", 2), ("--help", 0)):
        done = execute("fastadv-train", *words.split(), cwd=tmp_path)
        assert done.returncode == code
        assert (done.stdout == "") == (code == 2)
    assert list(tmp_path.iterdir()) == []


# ---- dry runs ----


@pytest.mark.slow
def test_the_published_command_starts_as_typed(tmp_path: Path) -> None:
    words = "--arch wide_resnet50_2 --eps 3 --dry-run"
    done = execute("fastadv-train", *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, *lines = done.stderr.splitlines()
    assert lines[0].startswith("--data is shapetex_bold, a built-in procedural set")
    assert "drawn at 32 px" in lines[0]
    assert "as published for ImageNet: 90 epochs" in lines[0]
    start = "wide_resnet50_2 on shapetex_bold at 32 px, l2 3, 3 steps: "
    assert lines[1].startswith(start)
    assert "1045 training, 55 validation, 1000 test images, 12 classes" in lines[1]
    assert "batch 32, 45 epochs, 1485 steps" in lines[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"data": "shapetex_bold", "epochs": 45, "optimizer": "adamw", "lr": 1e-3}),
        ("--arch resnet8_cifar", {"eps": 0.5, "lr": 3e-3, "optimizer": "adamw"}),
        (
            "--epochs 6",
            {"epochs": 6, "clean_epochs": 1, "eps_warmup": 1, "eval_every": 6},
        ),
        ("--epochs 1", {"epochs": 1, "eps_warmup": 0, "eval_every": 1}),
        ("--lr 0.05", {"optimizer": "sgd", "lr": 0.05, "schedule": "onecycle"}),
        ("--schedule cosine", {"schedule": "cosine", "optimizer": "adamw"}),
        ("--batch-size=16 --eval-every 1", {"batch_size": 16, "eval_every": 1}),
        ("--method standard", {"eps": 0, "clean_epochs": 0, "data": "shapetex_bold"}),
        ("--method free", {"replays": 4, "clean_epochs": 9, "eps_warmup": 13}),
        # What names its data, or a file, is no try-out.
        ("--data digits", {"epochs": 90, "optimizer": "sgd", "lr": 0.1}),
        ("--data=shapetex", {"epochs": 90, "schedule": "step", "batch_size": None}),
    ],
)
def test_a_try_out_has_defaults_of_its_own(
    call: Caller, words: str, expected: dict[str, Any]
) -> None:
    done = call("train", *words.split(), "--print-config")
    assert done.code == 0
    values = yaml.safe_load(done.out)
    assert {key: values[key] for key in expected} == expected


def test_the_default_radius_follows_the_size(call: Caller) -> None:
    for words, eps in (
        ("--arch resnet18_cifar", 0.5),
        ("--resolution 32", 0.5),
        ("--resolution 112", 1.5),
        ("--data images", 3.0),
        ("--data shapetex", 0.86),
        ("--norm linf", 4 / 255),
        ("--arch resnet18_cifar --eps 1", 1.0),
    ):
        done = call("train", *words.split(), "--print-config")
        assert yaml.safe_load(done.out)["eps"] == pytest.approx(eps)


def test_a_dry_run_writes_nothing(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", *flags(tmp_path / "run", num_train=40, dry_run=True))
    assert result.code == 0
    assert "30 training, 10 validation, 500 test images" in result.err
    assert list(tmp_path.iterdir()) == []
    # But what could not work is said now.
    wrong = flags(tmp_path / "run", num_train=40, val_size=40, dry_run=True)
    assert call("train", *wrong).code == 2


def test_resume_reads_the_flags_of_the_run(call: Caller, tmp_path: Path) -> None:
    words = flags(tmp_path / "run", num_train=40, epochs=1)
    assert call("train", *words).code == 0
    again = call("train", *words)
    assert again.code == 2
    assert f"{tmp_path / 'run'} already holds a run; add --resume" in again.error
    for spelling in (["--out", tmp_path / "run"], [f"--out-dir={tmp_path / 'run'}"]):
        assert call("train", "--resume", *spelling).code == 0
    changed = call("train", "--resume", "--out", tmp_path / "run", "--lr", "0.3")
    assert changed.code == 2
    assert "(lr: 0.1 -> 0.3)" in changed.error
    file = tmp_path / "other.yaml"
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    file.write_text(yaml.safe_dump(kept | {"seed": 5}))
    # A given --config is not overruled by the run's own, however it is spelled.
    other = call("train", "--resume", "--out", tmp_path / "run", f"--config={file}")
    assert other.code == 2
    assert "(seed: 0 -> 5)" in other.error
