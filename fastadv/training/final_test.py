"""The final test of a training run, as rows of a results table in its folder."""

from __future__ import annotations

from pathlib import Path

from fastadv.attacks import PGD
from fastadv.environment import provenance
from fastadv.evaluation.accuracy import Evaluation
from fastadv.evaluation.rows import (
    evaluation_rows,
    source_record,
    store,
    target_record,
)
from fastadv.models.source import open_source
from fastadv.results.row import Provenance
from fastadv.results.settings import EvaluationSetting
from fastadv.results.table import ResultsTable
from fastadv.training.config import TrainConfig
from fastadv.training.images import RunImages


def store_final_test(
    folder: Path,
    config: TrainConfig,
    images: RunImages,
    found: Evaluation,
    judge: PGD | None,
) -> None:
    """Add what the test of the best weights found to the table `FOLDER/results`.

    The same weights are added once, however often their run is resumed.

    Args:
        folder: Folder of the run.
        config: Choices of the run.
        images: Images of the run.
        found: Accuracies of the best weights on the evaluation split.
        judge: Attack that the robust accuracy was measured under.
    """
    source, test = open_source(str(folder)), images.test
    name = config.name_with_options(test.name)
    rows = evaluation_rows(
        found,
        judge,
        source=source_record(source),
        target=target_record(test, images.resolution, name),
        setting=EvaluationSetting(
            split=test.split,
            augment=source.augment,
            preparation=images.unusual_preparation,
            chose_preparation=images.prepared.chosen,
        ),
        seed=config.seed,
        provenance=Provenance.from_facts(provenance(), "fastadv-train"),
    )
    store(ResultsTable(folder / "results", once=True), rows, found)
