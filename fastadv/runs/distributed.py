"""Several processes as one run: they find each other, decide together and fail together.

Each process is a rank. Ranks that were started by torchrun, Slurm or `launch` find each
other through the environment (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Decisions that
all must take alike (stop, report, save) go over a gloo group of their own, so that they
never wait for a GPU.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from fastadv.data.counter import derive_key
from fastadv.device import resolve_device
from fastadv.errors import ConfigError, FastadvError, Preempted
from fastadv.runs.peers import PeerFailed, Peers
from fastadv.runs.preemption import StopRequest

Value = TypeVar("Value")

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class World:
    """The ranks of a run; by default this process alone, which sends nothing.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of ranks.
        local_rank: Number of this process among the ranks of this machine, from 0.
        local_size: Number of ranks on this machine.
        control: The gloo group for decisions; None for a single process.
        peers: The watch for failures of other ranks; None for a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    control: dist.ProcessGroup | None = field(default=None, repr=False)
    peers: Peers | None = field(default=None, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this rank writes the log, the checkpoints and the terminal."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of this rank, where `name` was chosen for the run.

        Raises:
            ConfigError: There is no such device, or there are fewer than ranks on this
                machine.
        """
        device = resolve_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(
                f"`device={name}` is one device, and there are {self.size} ranks; use "
                "`device=cuda`, and each takes its own"
            )
        count = torch.cuda.device_count()
        if self.local_size > count:
            raise ConfigError(
                f"{self.local_size} ranks on this machine, which has {count} CUDA "
                f"device(s); start at most {count}, or use `device=cpu`"
            )
        return torch.device("cuda", self.local_rank)

    def per_rank(self, batch_size: int) -> int:
        """Return how many of the `batch_size` images of an update each rank takes.

        Raises:
            ConfigError: The ranks cannot share the batch equally.
        """
        if batch_size % self.size:
            near = batch_size - batch_size % self.size
            choices = [str(n) for n in (near, near + self.size) if n]
            raise ConfigError(
                f"a batch of {batch_size} images cannot be shared equally by "
                f"{self.size} ranks; `batch_size` counts the images of all ranks: use "
                f"{' or '.join(choices)}"
            )
        return batch_size // self.size

    def agree(self, *own: int) -> tuple[int, ...]:
        """Return the maximum of each number over all ranks. Every rank must call it."""
        if self.size == 1:
            return own
        values = torch.tensor(own, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.control)
        return tuple(values.tolist())

    def agree_to_stop(self, stop: StopRequest, *own: int) -> tuple[int, ...]:
        """Agree on whether to stop and on further numbers; all stop when one must.

        Args:
            stop: The request of this rank, which takes over a signal of another rank.
            *own: Further numbers to `agree` on.

        Returns:
            The number of the signal (0: no rank has to stop) and the further numbers.
        """
        number, *rest = self.agree(stop.number, *own)
        # The decision is `number`, not `stop`: a signal may reach one rank alone between
        # this line and the next.
        if number and not stop:
            stop.number = number
        return number, *rest

    def gather(self, value: Value) -> list[Value]:
        """Return the `value` of each rank. Every rank must call it.

        Values may hold plain values and CPU tensors.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, value: Value) -> Value:
        """Return the `value` of rank 0. Every rank must call it."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]


def random_state() -> dict[str, torch.Tensor]:
    """Return the states of torch's generators, for this process and its device."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(
    states: Sequence[dict[str, torch.Tensor]], rank: int, seed: int
) -> None:
    """Set torch's generators to a saved state.

    Args:
        states: Result of `random_state` on each rank.
        rank: Number of this rank. If the run did not have it before, `seed` is used.
        seed: Seed of the run.
    """
    if rank >= len(states):
        torch.manual_seed(derive_key(seed, "rank", rank))
        return
    torch.set_rng_state(states[rank]["cpu"])
    if torch.cuda.is_available() and "cuda" in states[rank]:
        torch.cuda.set_rng_state(states[rank]["cuda"])


def read_environment(environ: Mapping[str, str] = os.environ) -> World:
    """Read from the environment which rank this process is, as torchrun sets it.

    Raises:
        ConfigError: The variables are incomplete or contradict each other.
    """
    size = _number(environ, "WORLD_SIZE", 1)
    if "RANK" not in environ and size == 1:
        return World()
    given = [name for name in _NEEDED if name in environ]
    if len(given) < len(_NEEDED):
        raise ConfigError(
            f"{', '.join(f'{name}={environ[name]}' for name in given)} set, but "
            f"{', '.join(n for n in _NEEDED if n not in given)} not: a run of several "
            "ranks is started by torchrun or `nproc=N`, which set all of them; for one "
            f"process unset {', '.join(given)}"
        )
    rank = _number(environ, "RANK", 0)
    local_rank = _number(environ, "LOCAL_RANK", rank)
    local_size = _number(environ, "LOCAL_WORLD_SIZE", size)
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise ConfigError(
            f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of "
            f"LOCAL_WORLD_SIZE={local_size} cannot be: ranks count from 0 to the size "
            "less one. Start the run with torchrun or `nproc=N`"
        )
    return World(rank, size, local_rank, local_size)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{name}={text!r} is not a number of ranks") from None


@contextmanager
def join_ranks(device: str) -> Iterator[World]:
    """Take part in the run that the environment describes, alone if it describes none.

    Inside the block an exception on one rank ends all: the others raise `PeerFailed` with
    its reason, within seconds.

    Args:
        device: Name of the device that was chosen for the run.

    Raises:
        ConfigError: The world size is wrong, or there are more ranks than devices.
        PeerFailed: Another rank failed.
    """
    world = read_environment()
    if world.size == 1:
        yield world
        return
    if world.local_rank:
        logging.getLogger().setLevel(logging.ERROR)  # warnings come once, from rank 0
    with _reported_once(world):
        own = world.device(device)
        if nccl := own.type == "cuda":
            torch.cuda.set_device(own)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
        except (dist.DistError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise FastadvError(
                f"rank {world.rank} of {world.size} found no common start at "
                f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); "
                "is the port free, and were all ranks started?"
            ) from error
    world.control = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
    attempt = world.share(secrets.token_hex(8))
    world.peers = Peers(world.rank, world.size, attempt, quiet=world.local_rank != 0)
    ended = False
    try:
        with _reported_once(world):
            try:
                yield world
                ended = True
            except Preempted:
                ended = True
                raise
            except BaseException as error:
                found = world.peers.explain(error)
                raise found from (None if isinstance(found, PeerFailed) else error)
        world.gather(None)  # rank 0 may hold the store that others still ask
    finally:
        world.peers.leave()
        if ended or not nccl:  # NCCL would wait for what a dead rank never sends
            dist.destroy_process_group()


@contextmanager
def _reported_once(world: World) -> Iterator[None]:
    """Let only the first rank of this machine report an error that all ranks have."""
    try:
        yield
    except FastadvError as error:
        if world.local_rank and not getattr(error, "own", False):
            raise SystemExit(error.exit_code) from None
        raise
