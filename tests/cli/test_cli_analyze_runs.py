"""Analyses that are stopped and continue, and that run in several processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Caller
from PIL import Image
from small_runs import environment

from fastadv.analysis import (
    analyze_gradients,
    analyze_manipulation,
    analyze_shape,
    analyze_shift,
    analyze_similarity,
    ascent,
)
from fastadv.models import create_model, save_model
from fastadv.results.table import ResultsTable
from fastadv.transfer import features


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small networks of the ten digits at 16 px."""
    folder = tmp_path_factory.mktemp("networks")
    classes = [str(digit) for digit in range(10)]
    found = []
    for seed in range(2):
        found.append(folder / f"net{seed}.safetensors")
        model = create_model("resnet8_cifar", 10, seed=seed)
        save_model(model, found[-1], {"resolution": 16, "classes": classes})
    return found


@pytest.fixture(scope="module")
def cues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that is called as cue conflicts are."""
    folder = tmp_path_factory.mktemp("cues")
    noise = np.random.default_rng(0)
    for i in range(40):
        pixels = noise.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        name = f"cat{i}-dog1.png" if i % 2 else f"dog{i}-cat1.png"
        Image.fromarray(pixels).save(folder / name)
    (folder / "categories16.json").write_text('{"cat": ["0"], "dog": ["1"]}')
    return folder


KINDS: dict[str, tuple[Any, str, list[object]]] = {
    "influence": (
        features, "normalize",
        ["--data", "digits", "--num-train", 40, "--num-test", 20, "--batch-size", 8,
         "--feature-cache", "off"],
    ),
    "cka": (
        analyze_similarity, "_record",
        ["--data", "digits", "--num-images", 50, "--batch-size", 8],
    ),
    "svcca": (
        analyze_similarity, "_record",
        ["--data", "digits", "--num-images", 150, "--batch-size", 24,
         "--layers", "layer1", "--measure", "svcca"],
    ),
    "shape": (analyze_shape, "_probabilities", ["--batch-size", 8]),
    "manipulation": (
        analyze_manipulation, "finite_logits",
        ["--data", "digits", "--how", "low_pass", "--levels", 2, "--num-images", 40,
         "--batch-size", 8],
    ),
    "shift": (
        analyze_shift, "_judge_batch",
        ["--data", "digits", "--corruptions", "contrast", "gaussian_noise",
         "--severities", 2, "--num-images", 40, "--batch-size", 8],
    ),
    "gradients": (
        analyze_gradients, "alignments",
        ["--data", "digits", "--num-images", 40, "--batch-size", 8],
    ),
    "visualization": (
        ascent, "ascend",
        ["--data", "digits", "--units", 1, 2, "--num-images", 3, "--batch-size", 1,
         "--num-steps", 2],
    ),
    "inversion": (
        ascent, "ascend",
        ["--data", "digits", "--num-images", 5, "--batch-size", 1, "--num-steps", 2],
    ),
}  # fmt: skip
# A portion has the activations of two networks, or images as they are and changed.
TWO_CALLS = ("cka", "svcca", "manipulation")


def words(kind: str, networks: list[Path], cues: Path) -> list[object]:
    given = ["--source", *networks, *KINDS[kind][2]]
    if kind == "shape":
        return ["shape", "--data", cues, *given]
    if kind not in ("cka", "svcca"):
        return [kind, *given]
    return ["similarity", "--other", networks[0], *given]


def contents(results: Path) -> dict[str, Any]:
    """Everything that was found, by source and metric."""
    table = ResultsTable(results)
    return {
        f"{row.source.name} {row.metric}": (
            (row.identity, row.value, row.low, row.high, row.n),
            {name: values.tobytes() for name, values in table.arrays(row).items()},
        )
        for row in table.rows()
    }


class Counted:
    """Counts the calls of a function of an analysis, and sends a signal at one."""

    def __init__(self, function: Callable[..., Any], stop: int | None = None) -> None:
        self.function, self.stop, self.calls = function, stop, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.function(*arguments, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_analysis_continues(
    kind: str,
    call: Caller,
    networks: list[Path],
    cues: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM amid the second network: nothing that was finished is computed again."""
    module, name, _ = KINDS[kind]
    given = words(kind, networks, cues)
    function = getattr(module, name)

    def run(results: Path, stop: int | None = None) -> tuple[Any, int]:
        counted = Counted(function, stop)
        monkeypatch.setattr(module, name, counted)
        return call("analyze", *given, "--results", results), counted.calls

    done, calls = run(tmp_path / "undisturbed")
    assert done.code == 0, done.err
    assert calls >= 8
    stop = calls - 2
    stopped, _ = run(tmp_path / "r", stop)
    assert stopped.code == 75, stopped.err
    assert "stopped; 1 of 2 analyses are in" in stopped.error, stopped.err
    assert list((tmp_path / "r" / "_unfinished").iterdir())
    again, rest = run(tmp_path / "r")
    assert again.code == 0, again.err
    repeated = rest - (calls - stop + 1)
    assert repeated in ((0, 1) if kind in TWO_CALLS else (0,))
    assert contents(tmp_path / "r") == contents(tmp_path / "undisturbed")
    assert not (tmp_path / "r" / "_unfinished").exists()


KILLED = """
import os, signal, sys
from fastadv.analysis import analyze_similarity as module
from fastadv.cli.analyze import main
record, calls = module._record, []
def counted(*arguments):
    calls.append(1)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(*arguments)
module._record = counted
main(sys.argv[1:])
"""


def test_kill_nine_loses_the_portion_in_work(
    call: Caller,
    networks: list[Path],
    cues: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [*words("cka", networks[1:], cues), "--results", tmp_path / "r"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, given)],
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not ResultsTable(tmp_path / "r").rows()
    kept = (tmp_path / "r" / "_unfinished").glob("*/*")
    assert sorted(file.name for file in kept) == ["cka-0.npz", "cka-1.npz", "cka-2.npz"]
    counted = Counted(analyze_similarity._record)
    monkeypatch.setattr(analyze_similarity, "_record", counted)
    assert call("analyze", *given).code == 0
    # 50 images in batches of 8 are 6 portions: 14 calls, of which 3 portions were there.
    assert counted.calls == 14 - 6
    other = [*given[:-1], tmp_path / "undisturbed"]
    assert call("analyze", *other).code == 0
    assert contents(tmp_path / "r") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("sources", [1, 2])
def test_several_processes_find_the_same(
    sources: int, call: Caller, networks: list[Path], cues: Path, tmp_path: Path
) -> None:
    given = words(
        "cka", networks[-sources:], cues
    )  # of one source, two share the images
    one = call("analyze", *given, "--results", tmp_path / "one")
    more = ["--engine", "processes", "--jobs", 2, "--results", tmp_path / "two"]
    two = call("analyze", *given, *more)
    assert two.code == 0, two.err
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert two.out.replace("/two", "/one") == one.out
    assert any((tmp_path / "two" / "_logs").iterdir())


@pytest.mark.slow
def test_ray_finds_the_same(
    call: Caller, networks: list[Path], cues: Path, tmp_path: Path
) -> None:
    """Two workers of a local cluster share the images of one network."""
    pytest.importorskip(
        "ray", reason="Ray is not installed: pip install 'fastadv[ray]'"
    )
    given = words("cka", networks[1:], cues)
    one = call("analyze", *given, "--results", tmp_path / "one")
    more = ["--engine", "ray", "--jobs", 2, "--results", tmp_path / "two"]
    done = subprocess.run(
        [sys.executable, "-m", "fastadv.cli.analyze", *map(str, [*given, *more])],
        env=environment() | {"RAY_TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.replace("/two", "/one") == one.out


def test_what_cannot_be_opened_is_found_before_anything_is_computed(
    call: Caller, networks: list[Path], cues: Path, tmp_path: Path
) -> None:
    given = [*words("cka", [*networks, tmp_path / "absent.pt"], cues)]
    done = call("analyze", *given, "--results", tmp_path / "r")
    assert "absent.pt" in done.error
    assert not ResultsTable(tmp_path / "r").rows()


def test_a_source_that_is_named_twice_is_analysed_once(
    call: Caller, networks: list[Path], cues: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(networks[0], tmp_path / "copy.safetensors"))
    given = words("shape", [networks[0], networks[0], copy], cues)
    done = call("analyze", *given, "--results", tmp_path / "r")
    assert done.code == 0, done.err
    assert len(ResultsTable(tmp_path / "r").rows()) == 2  # two metrics of one network


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--jobs 2", "--jobs 2 needs --engine processes"),
        ("--jobs 0 --engine processes", "--jobs"),
        ("--address auto", "--address auto needs --engine ray"),
    ],
)
def test_engines_that_cannot_work(
    call: Caller, networks: list[Path], cues: Path, more: str, message: str
) -> None:
    done = call("analyze", *words("shape", networks, cues), *more.split())
    assert done.code == 2
    assert message in done.err
