"""The choices of every analysis, which the flags of fastadv-analyze set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from tyro.conf import arg

from fastadv.data.config import ImagesConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.flags import NormName, Pixels
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
class ShapeConfig(AnalysisConfig):
    """Count decisions for the shape and for the texture of cue conflict images.

    The images of Geirhos et al. 2019 have the shape of one category and the texture of
    another, and names such as airplane1-bicycle2.png. A network decides for the category
    with the highest mean probability of its classes.
    """

    data: Annotated[str, arg(aliases=["--dataset"])]
    """Folder or .zip archive of the images, with a file categories16.json."""
    categories: str | None = None
    """JSON file with the class names of each category. Default: categories16.json in the
    folder or archive."""


Role = Literal["source", "fine_tuned", "scratch"]


class Network(NamedTuple):
    """A network of an analysis of vulnerability, by its name and its role."""

    name: str
    role: Role


class Crafted(NamedTuple):
    """Two networks: a universal perturbation of the first is shown to the second."""

    on: Network
    shown_to: Network


@dataclass(frozen=True, kw_only=True)
class VulnerabilityConfig(AnalysisConfig):
    """Compare the vulnerability of a source, of networks tuned from it, and from scratch.

    For each network: accuracy on clean and on attacked images of the target, its relative
    decline, distances to the decision boundary, and how steep the boundary is along the
    direction of the attack (Zhang et al. 2023). For each pair: how often a universal
    perturbation that was crafted on one changes the decisions of the other. A source that
    does not know the classes of the target is judged by its own decisions.
    """

    source: Annotated[tuple[str, ...], arg(aliases=["--checkpoint", "--model-path"])]
    """The pretrained networks: run directories, checkpoint files, kept networks of a
    results table, or names. `fastadv-models show SOURCE` describes one."""
    fine_tuned: tuple[str, ...] = ()
    """Networks that were fine-tuned from a source on the data, named likewise; for example
    row:IDENTITY, the network that a transfer has kept."""
    scratch: tuple[str, ...] = ()
    """Networks that were trained on the data from random weights, named likewise."""
    norm: NormName = "linf"
    """Norm of all perturbations."""
    eps: Pixels | None = None
    """Radius of the attack in [0, 1] pixel units. Default: 1/255 for linf; l2 needs one."""
    num_steps: Annotated[int, AT_LEAST_1] = 10
    """Number of steps of the attack, PGD with a random start."""
    step_size: Pixels | None = None
    """Length of a step in [0, 1] pixel units. Default: 1.5 eps / num_steps."""
    distance: Literal["deepfool", "fmn", "ddn"] = "deepfool"
    """Attack that searches for the shortest perturbation of each image; ddn is for l2."""
    distance_steps: Annotated[int | None, AT_LEAST_1] = None
    """Largest number of its steps. Default: 50 for deepfool, 100 for the others."""
    num_images: Annotated[int | None, AT_LEAST_1] = 1000
    """Number of test images, a stratified, seeded subset; none means all. Fewer are used
    where the data set has fewer."""
    universal: Literal["all", "source", "none"] = "all"
    """Networks that universal perturbations are crafted on; each is shown to all."""
    universal_eps: Pixels | None = None
    """Radius of universal perturbations in [0, 1] pixel units. Default: 10/255 for linf; l2
    needs one."""
    universal_images: Annotated[int | None, AT_LEAST_1] = 2000
    """Number of training images that a universal perturbation is crafted on, a stratified,
    seeded subset; none means all."""
    universal_epochs: Annotated[int, AT_LEAST_1] = 5
    """Number of passes over these images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [network.name for network in self.networks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(
                f"{', '.join(sorted(twice))} is given more than once in `source`, "
                "`fine_tuned` and `scratch`; a network has one role"
            )
        if self.distance == "ddn" and self.norm != "l2":
            raise ConfigError(
                f"`distance=ddn` minimises l2, the norm is {self.norm}; use "
                "`distance=fmn`, or `norm=l2`"
            )
        needed = {"eps": self.eps}
        if self.universal != "none":
            needed["universal_eps"] = self.universal_eps
        for name, given in needed.items():
            if given is None and self.norm == "l2":
                raise ConfigError(f"`norm=l2` needs `{name}`, e.g. 0.5")
            if given == 0:
                raise ConfigError(f"`{name}=0` leaves no room for a perturbation")

    @property
    def networks(self) -> tuple[Network, ...]:
        """All networks with their roles."""
        roles: dict[Role, tuple[str, ...]] = {
            "source": self.source,
            "fine_tuned": self.fine_tuned,
            "scratch": self.scratch,
        }
        return tuple(Network(name, role) for role in roles for name in roles[role])

    @property
    def subjects(self) -> tuple[Network | Crafted, ...]:
        """The networks, and the pairs that universal perturbations are tried on."""
        networks = self.networks
        crafted = {
            "all": networks,
            "source": networks[: len(self.source)],
            "none": (),
        }[self.universal]
        pairs = (
            # First to itself: that row keeps the perturbation, which the others read.
            Crafted(on, to)
            for on in crafted
            for to in (on, *(other for other in networks if other != on))
        )
        return (*networks, *pairs)
