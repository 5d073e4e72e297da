"""The order in which the images of an epoch come, apart from their pixels.

It is that of anything that has a length and a fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastadv.data.counter import derive_key, permutation
from fastadv.errors import ConfigError, DataError
from fastadv.ranges import AT_LEAST_1, Checked


class Ordered(Protocol):
    """What an epoch can be made of: `ImageSet`, or another set with these members."""

    name: str
    split: str

    def __len__(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """Return a key of the content, the same for equal sets."""


@dataclass(frozen=True, kw_only=True)
class OrderOptions(Checked):
    """How an epoch is ordered and cut into batches.

    Raises:
        ConfigError: A value that cannot work.
    """

    batch_size: Annotated[int, AT_LEAST_1]
    """Images per batch and rank."""
    train: bool
    """Shuffle and augment; otherwise the set's order and a centre crop."""
    seed: int = 0
    """Chooses order, crops and flips."""
    rank: int = 0
    """This process among `world_size`."""
    world_size: Annotated[int, AT_LEAST_1] = 1
    """Number of processes sharing one epoch."""
    drop_last: bool = False
    """Leave out a last batch that is not full."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"rank={self.rank} is outside [0, {self.world_size}) for "
                f"world_size={self.world_size}"
            )


class EpochOrder:
    """The batches of indices that this rank takes of each epoch, and the position in it.

    In training, ranks take consecutive parts of each batch of all of them, cut
    from one global order; it is padded by wrapping around, so that ranks do
    equally many steps. In evaluation they take every world_size-th position,
    and every image is delivered exactly once.

    Args:
        images: The set whose positions are ordered.
        options: How they are ordered.
        groups: Group of each image, int [N]; in training, a batch then holds images of
            one group as far as there are enough of them. None makes no groups.

    Attributes:
        images: The set whose positions are ordered.
        options: How they are ordered.
        epoch: The epoch of the current or next iteration.
        position: Images of the epoch's order that all ranks together have taken.

    Raises:
        DataError: The set is empty.
        ConfigError: `drop_last` leaves no batch.
    """

    def __init__(
        self,
        images: Ordered,
        options: OrderOptions,
        groups: NDArray[np.int64] | None = None,
    ) -> None:
        if not len(images):
            raise DataError(
                f"{images.name}/{images.split} has no images; add some, or choose "
                "another split"
            )
        self.images, self.options, self._groups = images, options, groups
        self.epoch = self.position = 0
        self._resume = 0
        if not len(self) and options.train:
            raise ConfigError(
                f"batch_size={options.batch_size} with drop_last leaves no batch of "
                f"the {len(images)} images of {images.name}/{images.split} on "
                f"{options.world_size} rank(s); use a smaller batch_size"
            )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on this rank."""
        return len(self._batches(0))

    def begin(self) -> list[NDArray[np.int64]]:
        """Begin the epoch, or resume it where `load_state_dict` says.

        Returns:
            The remaining batches of this rank: positions in the set, int64 [n] each.
        """
        self.position, self._resume = self._resume, 0
        return self._batches(self.position)

    def take(self, indices: NDArray[np.int64]) -> None:
        """Count a batch as consumed, on this rank and on all others."""
        self.position += len(indices) * self.options.world_size

    def end(self) -> None:
        """End the epoch: the next iteration begins the next one."""
        self.epoch += 1
        self.position = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; its start unless resumed in it."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.position = self._resume = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch taken, as values that JSON can hold.

        The position counts images of all ranks, so that resuming with another
        batch size or world size continues with the images not yet seen.
        """
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.options.seed,
            "train": self.options.train,
            "fingerprint": self.images.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`: the same batches, to the bit, as without a stop.

        Raises:
            ConfigError: The state was saved with another seed or mode.
            DataError: The image set is not the one the state was saved for.
        """
        for name in ("seed", "train"):
            if state[name] != getattr(self.options, name):
                raise ConfigError(
                    f"the saved loader state has {name}={state[name]}, this loader "
                    f"{name}={getattr(self.options, name)}; resume with the saved value"
                )
        if state["fingerprint"] != self.images.fingerprint:
            raise DataError(
                f"{self.images.name}/{self.images.split} changed since the state "
                "was saved (names, sizes or parameters differ); restore it, or start "
                "afresh"
            )
        self.epoch = int(state["epoch"])
        self.position = self._resume = int(state["position"])

    def _batches(self, start: int) -> list[NDArray[np.int64]]:
        """Return this rank's index arrays from global position `start` on."""
        o = self.options
        order = np.arange(len(self.images))
        if o.train:
            order = permutation(derive_key(o.seed, "order", self.epoch), len(order))
            whole = o.batch_size * o.world_size
            if self._groups is not None:
                order = grouped(order, self._groups, whole)
            rest = order[start:]
            # Wrap-around: np.resize repeats from the beginning. The rest is padded, not
            # the whole, since another number of ranks may have come this far.
            padding = np.resize(order, -len(rest) % o.world_size)
            rest = np.concatenate([rest, padding])
            together = [rest[i : i + whole] for i in range(0, len(rest), whole)]
            batches = [np.split(part, o.world_size)[o.rank] for part in together]
        else:
            mine = order[start:][o.rank :: o.world_size]
            batches = [
                mine[i : i + o.batch_size] for i in range(0, len(mine), o.batch_size)
            ]
        if o.drop_last and batches and len(batches[-1]) < o.batch_size:
            batches.pop()
        if o.train and len(batches) > 1 and len(batches[-1]) == 1 < o.batch_size:
            # BatchNorm cannot train on one image at 1x1 resolution.
            batches[-2:] = [np.concatenate(batches[-2:])]
        return batches


def grouped(
    order: NDArray[np.int64], groups: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Return positions in an order whose parts of `size` are of one group each.

    A batch comes when its last image does. What is left of the groups at the end, fewer
    than `size` of each, comes last, group by group, so that every image comes once.

    Args:
        order: Positions, int64 [N].
        groups: Group of each position, int [N].
        size: Images per batch of all ranks.

    Returns:
        The same positions, int64 [N].

    Source:
        `GroupedBatchSampler` of torchvision's detection reference, which repeats images
        to fill the batches at the end.
    """
    waiting: dict[int, list[int]] = {}
    result: list[int] = []
    for position in order.tolist():
        batch = waiting.setdefault(int(groups[position]), [])
        batch.append(position)
        if len(batch) == size:
            result += batch
            batch.clear()
    for _, left in sorted(waiting.items()):
        result += left
    return np.array(result, dtype=np.int64)
