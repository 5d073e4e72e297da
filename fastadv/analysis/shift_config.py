"""The choices of analyses under shift, which flags of fastadv-analyze set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastadv.analysis.config import AnalysisConfig
from fastadv.flags import arg
from fastadv.ranges import AT_LEAST_1, Checked, Range


@dataclass(frozen=True, kw_only=True)
class ShiftConfig(AnalysisConfig):
    """Measure accuracy on corrupted images, or on images of another origin.

    The fifteen kinds of corruption of ImageNet-C in five severities each (Hendrycks and
    Dietterich 2019) are made as they are needed, for any data set. A folder like
    ImageNet-C is read instead, and ImageNet-R, -A, -Sketch, -V2 and other folders of
    classes are judged as they are. Classes of the data are found among those of the
    network by their names.
    """

    data: Annotated[str, arg(aliases=["--dataset"])]
    """A data set name, an ImageFolder or a .zip of one; or a folder of class folders
    without a training split, or of corruption/severity/class."""
    corruptions: tuple[str, ...] | None = None
    """Kinds of corruption, their groups (noise, blur, weather, digital), all, or none.
    Default: all, or none for a folder without a training split."""
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Severities of each corruption, from 1 to 5."""
    num_images: Annotated[int | None, AT_LEAST_1] = 1000
    """Number of test images, a stratified, seeded subset, each under every corruption;
    none means all. Fewer are used where the data set has fewer."""
    class_map: str | None = None
    """File that says which classes of the network stand for each class of the data: .csv
    with a class of the data and one of the network (its name, WordNet identifier or number)
    in each line, or .json. Default: classes of one name belong together."""


@dataclass(frozen=True, kw_only=True)
class DerivedConfig(Checked):
    """The rows and results table that every analysis of measured numbers takes."""

    source: Annotated[tuple[str, ...], arg(aliases=["--row"])] = ()
    """Rows to analyse: the first digits of their identities, or names of networks, as
    `fastadv-results list` prints them. Default: all that can be analysed."""
    results: str = "results"
    """Results table: a directory of Parquet files. Its rows are read, and new ones are added.
    What it already holds is not computed again."""


@dataclass(frozen=True, kw_only=True)
class CorruptionErrorConfig(DerivedConfig):
    """Divide errors under corruption by those of a reference: the mean corruption error.

    It takes the numbers of `fastadv-analyze shift` from the results table. The error under
    each kind of corruption, added over severities, is divided by that of the reference;
    the mean over kinds is the mCE of ImageNet-C (Hendrycks and Dietterich 2019).
    """

    reference: str
    """Name of the network whose errors are divided by, or the identity of its row; or
    alexnet for the published errors of AlexNet, with networks of ImageNet's classes."""


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig(DerivedConfig):
    """Measure calibration, clean and attacked, from the logits that rows have kept.

    The numbers are the expected calibration error (Guo et al. 2017) in bins of equal width
    and of equal mass, the negative log-likelihood and the Brier score, and the same after a
    temperature that was fitted to the other half of the images. Evaluations, transfers and
    shifts keep logits unless they ran with `keep=verdicts` or `keep=none`.
    """

    bins: Annotated[int, Range(2, 1000, "[]")] = 15
    """Number of bins of the expected calibration error."""
    temperature: bool = True
    """Also fit a temperature to one half of the images and apply it to the other."""


@dataclass(frozen=True, kw_only=True)
class EffectiveConfig(DerivedConfig):
    """Measure accuracy under shift beyond what standard accuracy leads to expect.

    A line through standard networks predicts accuracy under shift from standard accuracy
    on a logit or probit scale; effective robustness is what a network has above it
    (Taori et al. 2020). It takes the numbers of `fastadv-analyze shift` and fastadv-eval
    from the results table.
    """

    data: Annotated[str, arg(aliases=["--dataset"])]
    """Name of the shifted data set, as the results table has it, or of the one whose
    corrupted images count."""
    standard: str | None = None
    """Name of the data set of the standard accuracy. Default: the clean images of the
    corrupted ones."""
    fitted: tuple[str, ...] = ()
    """Names of the networks that the line is fitted to, at least five. Default: all whose
    training was standard."""
    scale: Literal["logit", "probit"] = "logit"
    """Scale on which the line is straight."""
