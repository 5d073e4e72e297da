"""The state that a training run saves, and the choices that a resumed run may change."""

from __future__ import annotations

from typing import Any

from fastadv.errors import TrainingDiverged
from fastadv.runs.directory import RunDirectory
from fastadv.training.config import TrainConfig

# Choices that may differ when a run is resumed: none of them changes what is computed.
MAY_CHANGE = (
    "out", "resume", "device", "workers", "save_minutes", "backend", "data",
    "dataset_option", "keep_every", "pictures_every", "tensorboard", "wandb", "parallel",
)  # fmt: skip
# The parts of the state that are saved with the weights, too.
METADATA = (
    "config", "resolution", "augment", "preparation", "classes", "epoch", "step", "best",
)  # fmt: skip
NO_SCORE = -1.0  # below every accuracy


def open_run(run: RunDirectory, config: TrainConfig) -> dict[str, Any] | None:
    """Lock the run directory; return the state to resume from, if there is one.

    Raises:
        ConfigError: The directory holds another run, or is being written.
        CheckpointError: The state cannot be read.
    """
    state = run.prepare(config.to_dict(), resume=config.resume)
    if state is not None and not run.has_best:
        state["best"] = NO_SCORE  # the best epoch is chosen again from those to come
    return state


def check_finite(state: dict[str, Any]) -> None:
    """Raise TrainingDiverged if a weight in the state of a run is not finite."""
    if not all(value.isfinite().all() for value in state["weights"].values()):
        raise TrainingDiverged(
            f"the weights after step {state['step'] - 1} are not finite"
        )
