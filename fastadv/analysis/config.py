"""The choices of every analysis, which the flags of fastadv-analyze set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastadv.data.config import ImagesConfig
from fastadv.device import DeviceConfig
from fastadv.flags import arg
from fastadv.ranges import ABOVE_0, AT_LEAST_1, Range


@dataclass(frozen=True, kw_only=True)
class AnalysisConfig(ImagesConfig, DeviceConfig):
    """The sources, images and results table that every analysis takes."""

    source: Annotated[tuple[str, ...], arg(aliases=["--checkpoint", "--model-path"])]
    """The networks, each analysed by itself: run directories, checkpoint files, kept
    networks of a results table, or names. `fastadv-models show SOURCE` describes one."""
    data: Annotated[str, arg(aliases=["--dataset"])]
    """A data set name, an ImageFolder or a .zip of one."""
    download: bool = False
    """Download a named source that is not on this machine."""
    resolution: Annotated[int | None, AT_LEAST_1] = None
    """Side of the images in pixels. Default: that of the source's training."""
    batch_size: Annotated[int, AT_LEAST_1] = 64
    """Images per batch."""
    seed: int = 0
    """Random seed of the subset of images."""
    results: str = "results"
    """Results table: a directory of Parquet files to which rows are added, with arrays
    beside them. What it already holds is not computed again."""

    @property
    def subjects(self) -> tuple[Any, ...]:
        """What is analysed, each by itself: the names of the sources."""
        return self.source


@dataclass(frozen=True, kw_only=True)
class InfluenceConfig(AnalysisConfig):
    """Compute which training images help or harm the prediction of each test image.

    The influence of a training image on a test image estimates by how much the loss of
    the latter would grow without the former, through the last layer of the network
    (Koh and Liang 2017; Utrera et al. 2021). The source must tell apart the classes of the
    data: use a network that was trained on it, or transferred to it.
    """

    num_train: Annotated[int | None, AT_LEAST_1] = 3200
    """Number of training images, a stratified, seeded subset; none means all. Fewer are
    used where the data set has fewer."""
    num_test: Annotated[int | None, AT_LEAST_1] = None
    """Number of test images, a stratified, seeded subset. Default: all of them."""
    queries: Literal["test", "train"] = "test"
    """Images that are influenced: those of the test split, or the training images."""
    cutoff: Annotated[float, Range(0, 1, "()")] = 0.05
    """Eigenvalues of the Hessian at or below this share of the largest count as zero."""
    damping: Annotated[float | None, ABOVE_0] = None
    """Number to add to the diagonal of the Hessian, whose whole inverse is then used
    instead of the pseudo-inverse."""
    feature_cache: str = "auto"
    """Folder in which embeddings are kept; with auto, the cache folder of fastadv, with
    off, none."""


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig(AnalysisConfig):
    """Compare the layers of two networks: how alike are their representations?

    Linear CKA is an unbiased estimate over batches (Kornblith et al. 2019; Nguyen et al.
    2021); SVCCA keeps the leading principal components of both and averages their
    canonical correlations (Raghu et al. 2017). Each is 1 for equal representations, also
    where one is rotated and scaled.
    """

    other: str
    """The network that each source is compared with."""
    measure: Literal["cka", "svcca"] = "cka"
    """Measure of similarity."""
    layers: tuple[str, ...] = ()
    """Modules of the source to compare, by their dotted path; `embedding` is what the
    head reads. Default: its stages and the embedding."""
    other_layers: tuple[str, ...] = ()
    """Modules of the other network. Default: like those of the source, where it has all
    of these, else its stages and the embedding."""
    num_images: Annotated[int | None, AT_LEAST_1] = 2000
    """Number of test images, a stratified, seeded subset; fewer are used where the data
    set has fewer."""
    batch_size: Annotated[int, Range(4)] = 256
    """Images per batch; the unbiased estimate needs four."""
    variance: Annotated[float, Range(0, 1, "(]")] = 0.99
    """Share of the variance that the principal components of SVCCA keep."""


@dataclass(frozen=True, kw_only=True)
class ManipulationConfig(AnalysisConfig):
    """Measure accuracy on images without their layout, or without some frequencies.

    Patches in random order show what needs no global shape (Zhang and Zhu 2019); low-,
    high- and band-passed images show which frequencies decisions rest on (Yin et al. 2019).
    The accuracy on the images as they are is measured beside it.
    """

    how: Literal["patch_shuffle", "low_pass", "high_pass", "band_pass"]
    """What is done to the images: patches in random order, or only frequencies below, above
    or between radii are kept, with the mean of each channel."""
    levels: tuple[float, ...] = ()
    """Patches per side; or radii in cycles per image, of which two neighbours enclose a
    band. Default: powers of two that the side of the images allows."""
    num_images: Annotated[int | None, AT_LEAST_1] = 2000
    """Number of test images, a stratified, seeded subset; none means all. Fewer are used
    where the data set has fewer."""


@dataclass(frozen=True, kw_only=True)
class ShapeConfig(AnalysisConfig):
    """Count decisions for the shape and for the texture of images that have two.

    The images of Geirhos et al. 2019 have the shape of one category and the texture of
    another, and names such as airplane1-bicycle2.png. A network decides for the category
    with the highest mean probability of its classes. With data=shapetex, shapes and
    textures are drawn independently. Any other data set needs
    dataset-option=texture=exchange, which gives images the spectrum of others.
    """

    data: Annotated[str, arg(aliases=["--dataset"])]
    """Folder or .zip archive of cue conflict images, with a file categories16.json; or
    shapetex; or a data set with exchanged textures."""
    categories: str | None = None
    """JSON file with the class names of each category. Default: categories16.json in the
    folder or archive."""
    num_images: Annotated[int | None, AT_LEAST_1] = 2000
    """Number of images with exchanged textures, a stratified, seeded subset; none means
    all. Cue conflict images and drawn ones are all used."""
