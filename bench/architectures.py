"""Try what fastadv does with a network on every architecture, and write the table of it.

All architectures by name and a small member of every family of timm are built with random
weights for ten classes, and each is asked the same: do features and head give the logits,
do blocks and head hold every parameter once, does the attack view compute what the network
does, does a step of an attack move the images, can the head be replaced, and do the weights
come back from a file. Networks of more parameters than `--most` are only built, without
memory, and their blocks checked.

What is done is kept in a file of JSON lines, so that the same command goes on after a stop;
`--only NAME ...` tries these again.

    python bench/architectures.py --most 60 --out docs/architectures.md
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from fastadv import PGD, ThreatModel
from fastadv.errors import ConfigError
from fastadv.models import (
    ARCHITECTURES,
    AttackView,
    NormalizedModel,
    create_model,
    load_model,
    save_model,
)
from fastadv.models.heads import MeanOfHeads
from fastadv.models.input_shapes import check_side
from fastadv.models.intermediate import trainable_blocks

RESULTS = Path(__file__).parent / "results" / "architectures.jsonl"

# The smallest member of every module of timm 1.0.31, by its parameters.
TIMM = [
    "beit_base_patch16_224",
    "halonet_h1",
    "test_byobnet",
    "cait_xxs24_224",
    "coat_tiny",
    "convit_tiny",
    "convmixer_768_32",
    "test_convnext",
    "cpubone_nano",
    "crossvit_tiny_240",
    "csatv2",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "davit_tiny",
    "deepseek_vit_412m",
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "test_efficientnet",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_m0",
    "vit_tiny_patch16_dinov3_qkvb",
    "fasternet_t0",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "gemma4_vit_167m_enc",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hiera_tiny_224",
    "sam2_hiera_tiny",
    "hrnet_w18_small",
    "iformer_t",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "levit_128s",
    "lowformer_b0",
    "test_mambaout",
    "test_coatnet",
    "poolformerv2_s12",
    "gmlp_ti16_224",
    "mixer_s32_224",
    "lcnet_035",
    "mobilenetv4_conv_small_035",
    "mobilenetv5_base",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "naflexvit_base_patch16_parfac_gap",
    "nasnetalarge",
    "nest_tiny",
    "nextvit_small",
    "test_nfnet",
    "pit_ti_224",
    "pnasnet5large",
    "pvt_v2_b0",
    "qwen3_vit_88m",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "test_resnet",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224",
    "tiny_vit_5m_224",
    "tnt_s_legacy_patch16_224",
    "tresnet_m",
    "twins_svt_small",
    "vgg11",
    "visformer_tiny",
    "test_vit",
    "vit_small_patch14_dinov2",
    "vit_tiny_r_s16_p8_224",
    "test_vit_relpos",
    "samvit_base_patch16_224",
    "vitamin_small_224",
    "volo_d1_224",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
    "xcit_nano_12_p8_224",
]
CLASSES, OTHER, SIDE = 10, 7, 96
# Radii of the attack: the loss of networks of random weights can be so steep that only
# within the last one it is nearly linear.
RADII = (1 / 255, 1e-4, 1e-6)
COLUMNS = (
    *("architecture", "px", "million", "classifier", "features", "blocks", "view"),
    *("attack", "new head", "file"),
)
YES = "yes"


def side_of(arch: str, model: NormalizedModel) -> int:
    """Return the side of the images: 96 px where the network takes them, to save time."""
    if not arch.startswith("timm/"):
        fixed, side = arch.startswith(("vit_", "maxvit")), model.spec.image_size
    else:
        config = model.net.default_cfg
        fixed, side = config.get("fixed_input_size"), int(config["input_size"][-1])
    if fixed or side < SIDE:
        return side
    try:
        check_side(model.net, 3, SIDE)
    except ConfigError:
        return side
    return SIDE


def classifier(model: NormalizedModel) -> str:
    """Describe the last layers in a word or two."""
    paths = model.spec.head_paths(model.net)
    if not paths:
        return "none"
    head = model.head
    if isinstance(head, MeanOfHeads):
        return " + ".join(paths)
    kind = "convolution " if isinstance(head, torch.nn.Conv2d) else ""
    return f"{kind}{paths[0]}"


def prepare(model: NormalizedModel, x: Tensor) -> None:
    """Give a network of random weights sane activations, and a head that is not zero."""
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    if norms and len(x) > 1:
        for norm in norms:
            norm.momentum = None  # an average of what passes
            norm.train()
        with torch.no_grad():
            model(x)
        model.eval()
    if model.spec.head_paths(model.net):
        fill(model, CLASSES)


def fill(model: NormalizedModel, classes: int) -> Tensor:
    """Write random weights to the head, and return them."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(classes, model.embedding_dim, generator=draw)
    model.set_head(weight, torch.zeros(classes))
    return weight


def features(model: NormalizedModel, x: Tensor) -> str:
    """Compare the head of the features with the logits."""
    logits, found = model(x), model.features(x)
    if not model.head_is_linear:
        return "not linear"
    weight, bias = model.head.weight.flatten(1), model.head.bias
    mine = torch.nn.functional.linear(found, weight, bias)
    return agreement(mine, logits)


def agreement(mine: Tensor, other: Tensor) -> str:
    """Return yes where two tensors agree to a thousandth of the largest value."""
    mine, other = mine.detach(), other.detach()
    error = float((mine - other).abs().max() / other.abs().max().clamp(min=1e-12))
    return YES if error < 1e-3 else f"differs by {error:.2g}"


def blocks(model: NormalizedModel) -> str:
    """Count the blocks, which must hold every parameter once, together with the head."""
    heads = model.heads if model.spec.head_paths(model.net) else ()
    listed = trainable_blocks(model.net, heads)
    held = [p for _, ms in listed for m in ms for p in m.parameters()]
    held += [p for head in heads for p in head.parameters()]
    ids = [id(p) for p in held]
    if set(ids) != {id(p) for p in model.net.parameters()}:
        return "parameters are missing"
    shared = len(ids) - len(set(ids))
    return f"{len(listed)}{f', {shared} parameters in several' if shared else ''}"


def view(model: NormalizedModel, x: Tensor) -> str:
    """Compare logits and input gradient of the attack view with the network's."""
    exact = copy.deepcopy(model).double()
    seen = AttackView(exact)
    outputs = []
    for function in (seen, exact.forward_normalized):
        z = exact.normalize(x.double()).requires_grad_()
        logits = function(z)
        draw = torch.Generator().manual_seed(0)
        weights = torch.randn(logits.shape, generator=draw).double()
        (gradient,) = torch.autograd.grad((logits * weights).sum(), z)
        outputs.append((logits.detach(), gradient))
    for mine, other in zip(*outputs, strict=True):
        if (found := agreement(mine, other)) != YES:
            return found
    return f"{seen.folded} folded" if seen.unfolded_reason is None else "as it is"


def attack(model: NormalizedModel, x: Tensor) -> str:
    """Take one step of PGD, which must move the images and raise the loss."""
    loss = torch.nn.functional.cross_entropy
    with torch.no_grad():
        logits = model(x)
    labels = logits.argmin(1)
    before, found = float(loss(logits, labels)), []
    for eps in RADII:
        step = PGD(ThreatModel("linf", eps), num_steps=1)
        moved, _ = step.perturb(model, x, labels)
        if not 0 < float((moved - x).abs().max()) <= eps + 1e-7:
            return "does not move"
        with torch.no_grad():
            found.append(float(loss(model(moved), labels)))
        if found[-1] > before:
            return YES
    return f"loss from {before:.3g} to {', '.join(f'{each:.3g}' for each in found)}"


def new_head(model: NormalizedModel, x: Tensor) -> str:
    """Replace the head, write to it, and classify."""
    model.replace_head(OTHER, seed=0)
    weight = fill(model, OTHER)
    logits = model(x)
    if logits.shape != (len(x), OTHER):
        return f"logits {tuple(logits.shape)}"
    if not model.head_is_linear:
        return YES
    return agreement(model.features(x) @ weight.T, logits)


def file(model: NormalizedModel, x: Tensor) -> str:
    """Save the network, load it again, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_model(model, path)
        return agreement(load_model(path)(x), model(x))


def tried(check: Callable[..., str], *given: object) -> str:
    """Return what a check says, or the first words of its error."""
    try:
        with torch.set_grad_enabled(check in (view, attack)):
            return check(*given)
    except Exception as error:  # this table reports whatever happens
        return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"


def row_of(arch: str, most: float) -> list[str]:
    """Return the row of the table for an architecture."""
    try:
        with torch.device("meta"):
            shape = create_model(arch, CLASSES)
        size = sum(p.numel() for p in shape.parameters()) / 1e6
    except Exception as error:
        return [arch, "", "", f"{type(error).__name__}: {str(error)[:60]}"]
    row = [f"{size:.1f}", classifier(shape)]
    if size > most:
        return [arch, "", *row, "", tried(blocks, shape), "", "", "", ""]
    model = create_model(arch, CLASSES, seed=0).eval()
    side = side_of(arch, model)
    row = [arch, str(side), *row]
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    tried(prepare, model, x)
    row += [tried(features, model, x), tried(blocks, model)]
    return row + [tried(check, model, x) for check in (view, attack, new_head, file)]


def read_done(path: Path) -> dict[str, list[str]]:
    """Return the rows of a file of JSON lines; the last of each architecture counts."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {row[0]: row for row in map(json.loads, lines)}


def try_all(archs: list[str], most: float, path: Path) -> None:
    """Try architectures, and append the row of each to a file of JSON lines."""
    for arch in archs:
        gc.collect()
        began = time.monotonic()
        row = row_of(arch, most)
        with path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{arch}: {time.monotonic() - began:.1f} s", row[1:], flush=True)


def page(found: list[list[str]], most: float) -> str:
    """Return the page of the table, in Markdown."""
    import timm

    vision = torchvision.__version__.partition("+")[0]
    lines = [
        "# Architectures",
        "",
        f"Made by `python bench/architectures.py --most {most:g} --out "
        f"docs/architectures.md` (torchvision {vision}, timm {timm.__version__}): every "
        "architecture by name, and the smallest member of every family of timm, with "
        "random weights.",
        "",
        "*features*: the head of the features gives the logits. *blocks*: what "
        "`last_k_blocks` counts; together with the head they hold every parameter once. "
        "*view*: logits and input gradients are those of the network, and so many "
        "BatchNorm layers were folded; *as it is* means that the network cannot be traced "
        "and every layer of it runs. *attack*: a step of PGD raises the loss. *new head*: "
        "it can be replaced and written to. *file*: the weights come back from a file. "
        f"Of networks with more than {most:g} million parameters, only the structure was "
        "checked.",
        "",
        "The logits of SqueezeNet and VOLO are no linear function of their features. "
        "gemma4_vit has no classifier, but returns tokens: it can be attacked as a module, "
        "and is no source of transfer.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'|'.join(['---', '--:', '--:', *['---'] * (len(COLUMNS) - 3)])}|",
    ]
    for row in found:
        cells = [cell.replace("|", "/") for cell in row]
        lines.append(f"| {' | '.join(cells + [''] * (len(COLUMNS) - len(row)))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--only", nargs="*", help="try these again, and no others")
    parser.add_argument("--most", type=float, default=60, help="million parameters")
    parser.add_argument("--done", type=Path, default=RESULTS, help="JSON lines of rows")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    archs = [*sorted(ARCHITECTURES), *(f"timm/{name}" for name in TIMM)]
    done = read_done(given.done)
    left = [arch for arch in archs if arch not in done]
    try_all(left if given.only is None else given.only, given.most, given.done)
    done = read_done(given.done)
    if given.out:
        given.out.write_text(page([done[a] for a in archs if a in done], given.most))


if __name__ == "__main__":
    main()
