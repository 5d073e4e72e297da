"""Tuned launch configurations: measured when asked for, kept, found again, never in the way.

How choices reach a launch, and that measuring leaves the caller's tensors alone, is
tested where kernels run: `interpreted_cases.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import pytest
import torch
from kernel_cases import PIXEL_TOLERANCE, close, make_step

from fastadv import kernels
from fastadv.kernels import _triton, _tuning
from fastadv.kernels._tuning import (
    DEFAULT,
    LaunchConfig,
    Platform,
    Task,
    candidates,
    choice_file,
    choose,
)

TASK = Task("pgd_step", "l2", "nchw", "float32-uint8-bfloat16-bfloat16", 256, 262144)
PLATFORM = Platform("3.9.0", "NVIDIA H100 80GB HBM3", "9.0", 50 << 20)
FAST = LaunchConfig(2048, 8, 16384, 0.25)


class Measured:
    """Times to hand to `choose`, and how often they were asked for."""

    def __init__(self, times: dict[LaunchConfig, float]) -> None:
        self.times, self.calls = times, 0

    def __call__(self) -> dict[LaunchConfig, float]:
        self.calls += 1
        return self.times


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(_tuning.ENV_VAR, raising=False)
    forget()
    yield
    forget()


def forget() -> None:
    """What a new process knows: nothing but the disk."""
    _tuning._chosen.clear()


def test_nothing_is_measured_or_written_unasked(tmp_path):
    assert choose(TASK, PLATFORM) == DEFAULT
    assert list(tmp_path.iterdir()) == []


def test_a_choice_outlives_the_process():
    measured = Measured({DEFAULT: 1.0, FAST: 0.5, LaunchConfig(4096): 0.7})
    assert choose(TASK, PLATFORM, measured) == FAST
    assert choose(TASK, PLATFORM, measured) == FAST
    forget()
    assert choose(TASK, PLATFORM, measured) == FAST
    forget()
    assert choose(TASK, PLATFORM) == FAST
    assert measured.calls == 1


@pytest.mark.parametrize(
    ("fast", "chosen"), [(0.985, DEFAULT), (0.975, FAST)], ids=["noise", "gain"]
)
def test_noise_does_not_beat_the_default(fast, chosen):
    assert choose(TASK, PLATFORM, Measured({DEFAULT: 1.0, FAST: fast})) == chosen
    forget()
    assert choose(TASK, PLATFORM) == chosen


def test_where_nothing_could_be_measured_the_default_runs(tmp_path):
    """No memory for the copies: measuring is not tried again at every step."""
    measured = Measured({})
    assert choose(TASK, PLATFORM, measured) == DEFAULT
    assert choose(TASK, PLATFORM, measured) == DEFAULT
    assert measured.calls == 1
    assert list(tmp_path.iterdir()) == []


def test_a_capture_does_not_settle_what_later_calls_may_measure(monkeypatch):
    monkeypatch.setenv(_tuning.ENV_VAR, "1")
    assert choose(TASK, PLATFORM) == DEFAULT
    assert choose(TASK, PLATFORM, Measured({DEFAULT: 1.0, FAST: 0.5})) == FAST


KEYED = [
    *((TASK, "op", "apgd_step"), (TASK, "norm", "linf")),
    *((TASK, "layout", "channels_last"), (TASK, "dtypes", "float32-uint8-none-none")),
    *((TASK, "samples", 128), (TASK, "row", 4096)),
    *((PLATFORM, "triton", "3.6.0"), (PLATFORM, "device", "NVIDIA A100-SXM4-80GB")),
    (PLATFORM, "capability", "8.0"),
]


@pytest.mark.parametrize(
    ("where", "field", "value"), KEYED, ids=[field for _, field, _ in KEYED]
)
def test_a_choice_is_good_for_what_it_was_made_for_only(where, field, value):
    choose(TASK, PLATFORM, Measured({DEFAULT: 1.0, FAST: 0.5}))
    forget()
    other = dataclasses.replace(where, **{field: value})
    task, platform = (other, PLATFORM) if where is TASK else (TASK, other)
    assert choose(task, platform) == DEFAULT
    assert choose(TASK, PLATFORM) == FAST


def test_every_part_of_the_key_is_tested():
    names = {f.name for kind in (Task, Platform) for f in dataclasses.fields(kind)}
    # The size of the cache belongs to the device: no key of its own.
    assert names == {field for _, field, _ in KEYED} | {"cache_bytes"}


def test_choices_of_another_fastadv_are_not_used(monkeypatch, caplog):
    choose(TASK, PLATFORM, Measured({DEFAULT: 1.0, FAST: 0.5}))
    old = choice_file(TASK, PLATFORM)
    forget()
    monkeypatch.setattr(_tuning, "__version__", "999.0")
    assert choose(TASK, PLATFORM) == DEFAULT
    assert not caplog.records
    # Not even where a file was copied to the new name.
    new = choice_file(TASK, PLATFORM)
    new.parent.mkdir()
    new.write_bytes(old.read_bytes())
    forget()
    assert choose(TASK, PLATFORM) == DEFAULT
    assert "made for something else" in caplog.text


DAMAGE = {
    "empty": lambda good: b"",
    "cut": lambda good: good[:-30],
    "bytes": lambda good: b"\xff\xfe" + good,
    "list": lambda good: b"[1, 2]",
    "no config": lambda good: json.dumps({"key": json.loads(good)["key"]}).encode(),
    "unknown field": lambda good: good.replace(b'"block"', b'"blocks"'),
    "text": lambda good: good.replace(b"2048", b'"2048"'),
    "unlaunchable": lambda good: good.replace(b"2048", b"2000"),
    "infinite": lambda good: good.replace(b"0.25", b"Infinity"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_reported_once_and_written_again(damage, caplog):
    measured = Measured({DEFAULT: 1.0, FAST: 0.5})
    choose(TASK, PLATFORM, measured)
    path = choice_file(TASK, PLATFORM)
    good = path.read_bytes()
    bad = damage(good)
    assert bad != good
    path.write_bytes(bad)
    forget()
    for _ in range(3):
        assert choose(TASK, PLATFORM) == DEFAULT
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert path.read_bytes() == bad  # nothing is measured unasked
    forget()
    assert choose(TASK, PLATFORM, measured) == FAST
    assert path.read_bytes() == good
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "file" / "cache"))
    measured = Measured({DEFAULT: 1.0, FAST: 0.5})
    assert choose(TASK, PLATFORM, measured) == FAST
    assert choose(TASK, PLATFORM, measured) == FAST
    assert measured.calls == 1
    assert "FASTADV_CACHE" in caplog.text


WRITER = """
import sys
from fastadv.kernels import _triton, _tuning
from fastadv.kernels._tuning import DEFAULT, LaunchConfig, Platform, Task
task, platform = {task}, {platform}
mine = LaunchConfig(sum_width=int(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    _tuning._keep(task, platform, {{DEFAULT: 1.0, mine: 0.5}})
    _tuning._chosen.clear()
    found = _tuning.choose(task, platform)
    if found.sum_width not in (8192, 16384):
        sys.exit(str(found))
"""


def test_two_processes_never_see_half_a_file():
    """Both write one choice over and over, and read it back; so does this process."""
    program = WRITER.format(task=TASK, platform=PLATFORM)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(width), _tuning.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for width in (8192, 16384)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = set()
    path = choice_file(TASK, PLATFORM)
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(json.loads(path.read_bytes())["config"]["sum_width"])
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    assert seen
    assert seen <= {8192, 16384}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_interrupted_write_leaves_the_old_choice(monkeypatch):
    choose(TASK, PLATFORM, Measured({DEFAULT: 1.0, FAST: 0.5}))
    path = choice_file(TASK, PLATFORM)
    good = path.read_bytes()

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        _tuning._keep(TASK, PLATFORM, {DEFAULT: 1.0})
    assert path.read_bytes() == good
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "wrong",
    [
        {"block": 1000},
        {"block": 0},
        {"block": True},
        {"block": 8192},  # wider than a partial sum
        {"num_warps": 64},
        {"num_warps": 4.0},
        {"sum_width": 6000},
        {"l2_share": -0.1},
        {"l2_share": 1.5},
        {"l2_share": float("nan")},
        {"l2_share": "0.5"},
    ],
    ids=str,
)
def test_configurations_that_cannot_be_launched_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LaunchConfig(**wrong)


def test_a_sample_has_a_bounded_number_of_partial_sums():
    for config in (DEFAULT, FAST):
        for row in (1, 3072, 150528, 50_000_000, 2**31 - 1):
            width = config.width(row)
            assert width >= config.sum_width
            assert width % config.block == 0
            assert -(-row // width) <= _tuning.MAX_PARTS


def test_groups_fit_their_share_of_the_cache():
    row = 150528 * 7
    for share in (0.1, 0.25, 0.5, 1.0):
        group = LaunchConfig(l2_share=share).group(256, row, 50 << 20)
        assert group * row <= share * (50 << 20) < (group + 1) * row
    assert LaunchConfig(l2_share=0.5).group(4, row, 50 << 20) == 4  # all fit
    assert LaunchConfig(l2_share=0.5).group(4, row, row) == 1  # none fits
    assert LaunchConfig(l2_share=0.5).group(4, row, 0) == 1  # a device that hides it
    assert DEFAULT.group(256, row, 50 << 20) == 256


def test_candidates_are_different_launches():
    assert next(iter(candidates("linf", 256, 1 << 20, 50 << 20))) == DEFAULT
    assert all(c.l2_share == 0 for c in candidates("linf", 256, 1 << 20, 50 << 20))
    large = list(candidates("l2", 256, 1 << 20, 50 << 20))
    assert large[0] == DEFAULT
    assert len(set(large)) == len(large)
    assert {c.l2_share for c in large} == {0, 0.25, 0.5}
    # A batch that fits in the cache whole is one group however it is divided.
    assert {c.l2_share for c in candidates("l2", 4, 1 << 20, 50 << 20)} == {0}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_captured_step_is_not_measured(norm, tmp_path, monkeypatch, caplog):
    with kernels.use_backend("triton"):
        make_step(norm, (4, 3, 64, 64), device="cuda").run()  # compiles the default
        forget()
        monkeypatch.setenv(_tuning.ENV_VAR, "1")
        _triton._warn_of_capture.cache_clear()
        step = make_step(norm, (4, 3, 64, 64), device="cuda")
        want = step.oracle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step.run()
        assert "captured" in caplog.text
        assert list(tmp_path.rglob("*.json")) == []
        graph.replay()
        close(step.x, want.x, (0, PIXEL_TOLERANCE), "replayed")
        make_step(norm, (4, 3, 64, 64), device="cuda").run()
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_bytes())["milliseconds"] > 0
