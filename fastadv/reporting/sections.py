"""The sections of a transfer study that its results table has data for."""

from __future__ import annotations

from fastadv.reporting.page.html import Section
from fastadv.reporting.transfer.study import Study
from fastadv.reporting.transfer.study_classes import per_class, under_attack
from fastadv.reporting.transfer.study_images import (
    against_epochs,
    against_images,
    by_blocks,
    gain_against_images,
)
from fastadv.reporting.transfer.study_sources import (
    against_eps,
    against_source_accuracy,
    by_granularity,
    by_width,
    robust_and_standard,
)


def study_sections(study: Study) -> list[Section]:
    """The sections there are data for, in reading order."""
    builders = (
        robust_and_standard,
        against_eps,
        by_width,
        against_source_accuracy,
        by_granularity,
        against_images,
        gain_against_images,
        by_blocks,
        against_epochs,
        under_attack,
        per_class,
    )
    sections = [builder(study) for builder in builders]
    return [section for section in sections if section is not None]
