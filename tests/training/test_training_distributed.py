"""Several ranks: the same run as one process, and failing together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pair as pair_program
import pytest
import torch
from pair import LONG, METHODS, SHORT, frozen_norms, of_method
from small_runs import environment, events, flags, last_step, script, tiny, weights

from fastadv.errors import ConfigError
from fastadv.models import create_model, load_model
from fastadv.runs.distributed import World
from fastadv.runs.launch import _free_port
from fastadv.training import Trainer, train
from fastadv.training.learner import Learner

TOGETHER = 60.0  # seconds within which all ranks have stopped


# ---- one pair of ranks for everything that goes well ----


class Pair:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shared = environment() | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        program = [
            sys.executable,
            str(pair_program.__file__),
            str(folder),
        ]
        began = time.monotonic()
        ranks = [
            subprocess.Popen(
                program,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        try:
            self.stderr = [rank.communicate(timeout=200)[1] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        self.seconds = time.monotonic() - began
        self.codes = [rank.returncode for rank in ranks]
        try:
            self.found: list[dict[str, Any]] = [
                json.loads((folder / f"rank-{rank}.json").read_text())
                for rank in (0, 1)
            ]
        except FileNotFoundError:
            pytest.fail("\n".join(self.stderr))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("name", ["frozen", "synced", "sharded", "parts"])
def test_two_ranks_equal_one(name: str, pair: Pair, tmp_path: Path) -> None:
    """The same batches, random starts and updates; sums in another order.

    Plain DDP, too, but for BatchNorm, which each rank does by its own images, and so does
    each of the parts of a batch.
    """
    torch.set_num_threads(1)
    with frozen_norms() if name in ("frozen", "parts") else contextlib.nullcontext():
        train(tiny(tmp_path / "one", **SHORT))
    one = load_model(tmp_path / "one" / "checkpoints" / "last" / "model.safetensors")
    path = pair.folder / name / "checkpoints" / "last" / "model.safetensors"
    two = load_model(path).state_dict()
    for key, value in one.state_dict().items():
        # float32 sums of 16 images times 256 pixels: 1e-6 of the values was seen.
        torch.testing.assert_close(two[key], value, rtol=2e-5, atol=2e-5, msg=key)


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_by_every_method(
    method: str, pair: Pair, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    with frozen_norms():
        train(of_method(tmp_path / method, method))
    one, two = (
        load_model(folder / method / "checkpoints" / "last" / "model.safetensors")
        for folder in (tmp_path, pair.folder)
    )
    for key, value in one.state_dict().items():
        torch.testing.assert_close(
            two.state_dict()[key], value, rtol=2e-5, atol=2e-5, msg=key
        )


def test_images_per_second_are_those_of_all_ranks(pair: Pair) -> None:
    found = events(pair.folder / "plain")
    [train_rate] = [e["images_per_s"] for e in found if e["event"] == "train"]
    [test_rate] = [e["images_per_s"] for e in found if e["event"] == "test"]
    assert test_rate == pytest.approx(train_rate, rel=0.1)


def test_ranks_end_with_the_same_bits(pair: Pair) -> None:
    for name in ("plain", "synced", "sharded"):
        assert pair.found[0][name] == pair.found[1][name]
    assert pair.found[0]["plain"] != pair.found[0]["synced"]


def test_an_attack_step_sends_nothing(pair: Pair) -> None:
    for rank in pair.found:
        for steps in rank["collectives"].values():
            assert len(steps) == 4
            # The first two steps also settle what the buckets are.
            for sent, buckets, *_ in steps[2:]:
                assert sent == buckets >= 1
            (_, sent, first, control), (_, _, second, after) = steps[2:]
            assert second - first == sent + 1  # and the statistics of BatchNorm
            assert after - control == 1
        one, four = rank["collectives"].values()
        assert [s[:2] for s in one] == [s[:2] for s in four]


def test_every_image_counts_once(pair: Pair) -> None:
    for rank in pair.found:
        assert rank["together"] == rank["alone"]
        assert sum(rank["together"][1]) == sum(rank["together"][3]) == 13


def test_a_signal_to_one_rank_stops_all_and_nothing_is_lost(pair: Pair) -> None:
    for rank in pair.found:
        assert rank["preempted"].startswith("SIGTERM: saved step 3; continue with")
    stopped, whole = pair.folder / "stopped", pair.folder / "whole"
    assert weights(stopped) == weights(whole)
    assert weights(stopped, "best") == weights(whole, "best")
    logged = [event["event"] for event in events(stopped)]
    assert logged.count("preempted") == logged.count("resume") == 1  # by rank 0 alone
    assert next(e for e in events(whole) if e["event"] == "test")["robust_n"] == 20


def test_a_run_goes_on_with_fewer_ranks(pair: Pair) -> None:
    """After two batches of two ranks, one process takes the images that are left."""
    run = pair.folder / "fewer"
    assert last_step(run) == 2
    again = Trainer(tiny(run, **LONG, resume=True))
    assert again.loader.state_dict()["position"] == 32
    taken = [int(i) for batch in again.loader for i in batch.indices]
    fresh = Trainer(tiny(run.with_name("fresh"), **LONG))
    batches = [batch.indices.tolist() for batch in fresh.loader]
    assert taken == [i for batch in batches[2:] for i in batch]
    again.loader.load_state_dict(
        fresh.loader.state_dict() | {"epoch": 0, "position": 32}
    )
    again.fit()
    assert last_step(run) == again.total_steps


def test_not_a_number_on_one_rank_stops_all(pair: Pair) -> None:
    first, second = pair.found
    assert first["nan"] == second["nan"]
    assert first["nan"].startswith("the loss of step 1 is nan; ")
    logged = [e for e in events(pair.folder / "nan") if e["event"] == "diverged"]
    assert len(logged) == 1


def test_an_exception_on_one_rank_ends_all_with_its_reason(pair: Pair) -> None:
    assert pair.codes == [1, 1]
    assert "PeerFailed: rank 1 failed: Planted: a wire was cut" in pair.stderr[0]
    assert "Planted: a wire was cut" in pair.stderr[1]
    assert pair.seconds < TOGETHER + 60


# ---- the commands ----


def _children(pid: int) -> list[int]:
    return [
        int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def test_a_killed_rank_ends_all(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = flags(run, nproc=2, save_minutes=0, epochs=500)
    process = subprocess.Popen(
        [script("fastadv-train"), *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while last_step(run) < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first, second = _children(process.pid)
        os.kill(second, signal.SIGKILL)
        began = time.monotonic()
        _, stderr = process.communicate(timeout=TOGETHER)
    finally:
        process.kill()
    assert time.monotonic() - began < TOGETHER
    assert process.returncode == 1
    assert "rank 1 was ended by SIGKILL" in stderr
    assert "rank 1 failed: it died without a word (killed, or out of memory?)" in stderr
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{first}").exists()
    # Nothing is lost: one process goes on from the last step that was saved.
    assert Trainer(tiny(run, epochs=500, save_minutes=0, resume=True)).step >= 3


def test_torchrun_starts_it(tmp_path: Path) -> None:
    words = "-m torch.distributed.run --standalone --nproc-per-node 2"
    words += " -m fastadv.cli.train"
    done = subprocess.run(
        [sys.executable, *words.split(), *flags(tmp_path / "run", **SHORT)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"run: {tmp_path / 'run'}\n"  # rank 0 alone speaks
    assert done.stderr.count("cpu, 2 ranks") == 1
    assert last_step(tmp_path / "run") == 2


# ---- what cannot work ----


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        ({"ema": 0.9}, "`ema` averages whole weights"),
        ({"method": "gradalign", "num_steps": 1}, "`method=gradalign` differentiates"),
    ],
)
def test_what_cannot_be_spread(choices: dict[str, Any], complaint: str) -> None:
    config = tiny(Path("unused"), parallel="fsdp", **choices)
    model = create_model(config.arch, 10, seed=0)
    with pytest.raises(ConfigError, match=complaint):
        Learner(config, model, 16, World(rank=0, size=2))


def test_batches_that_ranks_cannot_share(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"16 images .* by 3 ranks; .* use 15 or 18"):
        Trainer(tiny(tmp_path / "run"), world=World(rank=0, size=3))
    assert World(rank=1, size=4).per_rank(16) == 4
