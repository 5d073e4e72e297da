"""The choices of an evaluation, which the flags of fastadv-eval set. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from fastadv.attacks.config import NORM_ALIAS, AttackConfig, StepsFlag, StepSizeFlag
from fastadv.data.config import ImagesConfig
from fastadv.device import DeviceConfig
from fastadv.errors import ConfigError
from fastadv.extensions import check_name, name_of
from fastadv.flags import NormName, Pixels, arg
from fastadv.models.handed_in import named_source
from fastadv.ranges import AT_LEAST_1
from fastadv.results.config import KeepConfig

# The names in `fastadv.attacks.autoattack`, which would import torch; a test compares them.
ATTACKS = (
    "pgd",
    "autoattack",
    "apgd-ce",
    "apgd-dlr",
    "apgd-t",
    "fab",
    "square",
    "deepfool",
    "fmn",
    "ddn",
)
# Those that search for the shortest perturbation; pyautoattack has none of them.
MINIMAL = ("deepfool", "fmn", "ddn")
# Those of the objectives that judge an image by its logits and its class.
OBJECTIVES = ("cross_entropy", "margin", "dlr")
_PGD_STEPS, _APGD_STEPS = 20, 100


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(AttackConfig, ImagesConfig, DeviceConfig, KeepConfig):
    """Measure clean and robust accuracy, with 95 % confidence intervals.

    An image counts as robust when it is classified correctly and no attack changes that.
    --attack pgd is quick; --attack autoattack is the standard of the field: APGD-CE,
    APGD-T, FAB-T and Square in turn, each on the images that withstood the earlier ones.
    """

    checkpoint: Annotated[str, arg(aliases=["--source", "--model-path"])]
    """The network: a run directory, a checkpoint file, torchvision:NAME, timm:NAME,
    hf:ORG/NAME, package:NAME, or row:IDENTITY for the network of a row of a results table.
    `fastadv-models show SOURCE` describes it."""
    data: Annotated[str, arg(aliases=["--dataset"])]
    """A data set name, a path or an address; its evaluation split is used, or all of data
    that have no training split."""
    class_map: str | None = None
    """A .csv or .json file that says which outputs of the network stand for which class of
    the data. Default: classes of the same name, WordNet identifier or number."""
    all_outputs: bool = False
    """Let the network choose among all of its outputs, and not among those alone that stand
    for the classes of the data."""
    arch: str | None = None
    """Architecture, if the checkpoint does not state it."""
    download: bool = False
    """Download a named checkpoint that is not on this machine."""
    resolution: Annotated[int | None, AT_LEAST_1, arg(aliases=["--crop"])] = None
    """Side of the images that the network sees in pixels, cropped from the centre. Default:
    that of the checkpoint's training."""
    norm: Annotated[NormName | None, NORM_ALIAS] = None
    """Norm of the attack. Default: that of the checkpoint's training, else l2."""
    eps: Pixels | None = None
    """Radius of the attack in [0, 1] pixel units; 0 means no attack. Default: that of the
    checkpoint's training."""
    radii: tuple[Pixels, ...] = ()
    """Several radii instead of --eps: robust accuracy at each, where an image that falls is
    not attacked within the larger ones. The report draws the curve."""
    attack: Annotated[str, arg(metavar="{" + ",".join(ATTACKS) + "}|MODULE:NAME")] = (
        "pgd"
    )
    """The attack; fab and square need the package pyautoattack. deepfool, fmn and ddn (l2
    only) search for the shortest perturbation, whatever the radius. MODULE:NAME imports a
    function from a threat model to an attack of your own; so does a name that an installed
    package adds."""
    judge: Literal["fastadv", "package"] = "fastadv"
    """Whose APGD runs: that of fastadv on its fused kernels, or that of pyautoattack, with
    everything else of that package (package)."""
    num_steps: StepsFlag = None
    """Number of gradient steps of each run. Default: 20 for pgd, 100 for the others."""
    step_size: StepSizeFlag = None
    """Length of a PGD step in [0, 1] pixel units. Default: 2.5 eps / num_steps."""
    num_restarts: Annotated[int, AT_LEAST_1] = 1
    """Number of random restarts, of which the worst counts."""
    num_targets: Annotated[int, AT_LEAST_1] = 9
    """Number of wrong classes that apgd-t and fab aim at, the likeliest first."""
    num_queries: Annotated[int, AT_LEAST_1] = 5000
    """Number of forward passes of square."""
    objective: Annotated[
        str, arg(metavar="{" + ",".join(OBJECTIVES) + "}|MODULE:NAME")
    ] = "cross_entropy"
    """Loss that PGD maximises. MODULE:NAME imports a function (logits, labels) of your own
    that returns the loss of each image; so does a name that an installed package adds."""
    second_opinion: bool = False
    """Then also attack with PGD on the margin, and with BPDA, which passes gradients through
    rounding, thresholds and saturated outputs: does the network withstand attacks, or does
    it mask gradients?"""
    twin: str | None = None
    """Then also try the adversarial images of this other checkpoint of the same classes,
    best one that was trained alike without the part that may mask gradients."""
    num_images: Annotated[int | None, AT_LEAST_1] = None
    """Evaluate a stratified, seeded subset of N images, which is not the fixed list of 5,000
    ImageNet images of RobustBench: accuracies on the two differ. Default: all images."""
    image_list: str | None = None
    """Evaluate the images that a text file lists, one path, file name or position in each
    line. robustbench stands for RobustBench's list of 5,000 images of ImageNet, which
    is taken from the package of that name, or downloaded. Default: all images."""
    batch_size: Annotated[int, AT_LEAST_1] = 64
    """Images per batch. It changes the results of what pyautoattack runs."""
    seed: int = 0
    """Random seed of the subset and the random starts."""
    out: Annotated[str | None, arg(aliases=["--out-dir"])] = None
    """Folder for the verdicts on finished batches, from which --resume continues."""
    resume: bool = False
    """Continue the evaluation in --out."""
    results: str = "results"
    """Results table: a directory of Parquet files to which rows are added, with arrays of
    the verdict on each image and its logits."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "checkpoint", named_source(self.checkpoint))
        for name, known in (("attack", ATTACKS), ("objective", OBJECTIVES)):
            named = name_of(getattr(self, name), known, f"{name}s")
            object.__setattr__(self, name, named)
        check_name("`attack`", self.attack, ATTACKS, "attacks")
        check_name("`objective`", self.objective, OBJECTIVES, "objectives")
        theirs = self.attack not in ATTACKS
        if (theirs or self.attack in ("pgd", *MINIMAL)) and self.judge == "package":
            raise ConfigError(
                f"`judge=package` has no {self.attack}; use `attack=autoattack` or apgd-ce "
                "with it"
            )
        if self.attack in MINIMAL and self.num_restarts > 1:
            raise ConfigError(
                f"`num_restarts={self.num_restarts}`: {self.attack} draws nothing, so a "
                "restart would repeat it; leave it out"
            )
        own = self.step_size is not None or self.objective != "cross_entropy"
        if self.attack != "pgd" and own:
            raise ConfigError(
                f"`step_size` and `objective` belong to pgd, {self.attack} chooses its "
                "own; leave them out, or use `attack=pgd`"
            )
        if self.image_list is not None and self.num_images is not None:
            raise ConfigError(
                f"`image_list={self.image_list}` says which images, so that "
                f"`num_images={self.num_images}` has no meaning; leave one out"
            )
        if self.radii and self.eps is not None:
            raise ConfigError(
                f"`radii` and `eps={self.eps:g}` both choose the radius; leave one out"
            )
        if len(set(self.radii)) < len(self.radii) or 0 in self.radii:
            raise ConfigError(
                f"`radii={' '.join(f'{r:g}' for r in self.radii)}` must be above 0 and "
                "different from each other"
            )
        if self.radii and self.step_size is not None:
            raise ConfigError(
                f"`step_size={self.step_size:g}` is for one radius; with `radii` leave it "
                "out, for 2.5 eps / num_steps at each"
            )
        if self.resume and self.out is None:
            raise ConfigError("`resume` needs `out`, the folder of what to continue")

    @property
    def steps(self) -> int:
        """Number of gradient steps: `num_steps`, or the default of the attack."""
        return self.num_steps or (_PGD_STEPS if self.attack == "pgd" else _APGD_STEPS)
