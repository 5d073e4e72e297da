"""What the names of published files say of the networks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fastadv.models.architecture_names import TIMM_PREFIX
from fastadv.models.input_conventions import CONVENTIONS
from fastadv.models.published import facts_from_name
from fastadv.preparation import Preparation

_TORCHVISION_NAME = re.compile(r"(?P<arch>\w+)-[0-9a-f]{8}$")
# Of the networks of Salman et al. 2020.
PUBLISHED_PREPARATION = Preparation(resize=256, crop=224)
# lukemelas' ports of Google's weights, which want TensorFlow's padding and BatchNorm.
_EFFICIENTNET_NAME = re.compile(
    r"(?P<adv>adv-)?efficientnet-(?P<variant>b[0-8]|lite[0-4])-[0-9a-f]{8}$"
)
# The networks that Geirhos et al. 2019 (1811.12231) trained on stylized images.
_STYLIZED_NAME = re.compile(
    r"(?P<arch>resnet50|vgg16|alexnet)_(train|finetune)_\d+_epochs[\w.]*-[0-9a-f]{8}$"
)


def facts_from_filename(path: Path) -> dict[str, Any]:
    """Return what the name of a published file says, as attributes of `Weights`.

    `resnet18_l2_eps3.ckpt` (linf names state the radius in 255ths) and
    `resnet18-0676ba61.pth` state their architecture, EfficientNets also their input:
    EfficientNet-Lite was trained on [-1, 1], as were AdvProp's; with the statistics of
    ImageNet it still runs, and loses about ten points of accuracy. Files of Geirhos et
    al., such as `resnet50_train_60_epochs-c8e5653e.pth.tar`, are texture-trained.
    """
    if published := facts_from_name(path.stem):
        known = dict(zip(("arch", "norm", "eps"), published, strict=True))
        return known | {"preparation": PUBLISHED_PREPARATION}
    if match := _TORCHVISION_NAME.match(path.stem):
        return {"arch": match["arch"]}
    if match := _STYLIZED_NAME.match(path.name.partition(".pth")[0]):
        return {"arch": match["arch"], "eps": 0.0, "kind": "texture"}
    if match := _EFFICIENTNET_NAME.match(path.stem):
        half = match["adv"] or match["variant"].startswith("lite")
        return {
            "arch": f"{TIMM_PREFIX}tf_efficientnet_{match['variant']}",
            "convention": CONVENTIONS["half" if half else "imagenet"],
        }
    return {}
