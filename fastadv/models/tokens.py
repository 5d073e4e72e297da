"""Which token of a transformer is its embedding, and how to choose another.

Encoders without a classifier (DINOv2, MAE, CLIP's image towers) do not say which of their
tokens is the embedding. Programs take the class token, the mean of the patches' tokens, or
the normalisation of that mean, as the fine-tuning of MAE and BEiT does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from fastadv.errors import ConfigError

TOKENS: Final = ("class", "mean", "pooled")
"""class: the class token. mean: the mean of the patches' tokens, each normalised by the last
layer of the trunk. pooled: that layer applied to the mean of the tokens."""

# Modules of timm whose networks read the class token or the mean by their `global_pool`.
_FAMILIES = {
    *("vision_transformer", "eva", "beit", "cait", "convit", "xcit", "tnt"),
    *("vision_transformer_hybrid", "deit"),
}


def parse_token(text: str) -> str:
    """Return the name of a token.

    Raises:
        ValueError: It is none.
    """
    if text not in TOKENS:
        raise ValueError(f"token={text!r} must be one of {', '.join(TOKENS)}")
    return text


def token_of(net: nn.Module) -> str | None:
    """Return which token is the embedding; None for a network without such a choice."""
    if isinstance(net, VisionTransformer):
        return "mean" if isinstance(net, _MeanOfPatches) else "class"
    if not _has_choice(net):
        return None
    if getattr(net, "global_pool", None) == "token":
        return "class"
    return "pooled" if _is_norm(getattr(net, "fc_norm", None)) else "mean"


def token_of_keys(net: nn.Module, keys: Iterable[str]) -> str | None:
    """Return `pooled` where keys of a file say that it normalises the mean; else None.

    Such a file has the last normalisation of a transformer as `fc_norm`, and not as `norm`.
    """
    if not _has_choice(net) or not hasattr(net, "fc_norm"):
        return None
    names = set(keys)
    found = [key for key in names if key.endswith("fc_norm.weight")]
    pooled = any(
        key.removesuffix("fc_norm.weight") + "norm.weight" in names for key in found
    )
    return "pooled" if found and not pooled else None


def set_token(net: nn.Module, token: str) -> None:
    """Have a transformer take another token as its embedding, in place.

    Args:
        net: A transformer of timm with a class token, or torchvision's.
        token: One of `TOKENS`.

    Raises:
        ConfigError: The network has no such token.
    """
    parse_token(token)
    if token == token_of(net):
        return
    if isinstance(net, VisionTransformer) and token != "pooled":
        net.__class__ = _MeanOfPatches if token == "mean" else VisionTransformer
        return
    if not _has_choice(net):
        raise ConfigError(
            f"{type(net).__name__} has no choice of tokens, so that token={token} means "
            "nothing to it; leave that out"
        )
    own: Any = net
    if token == "pooled" or _is_norm(getattr(net, "fc_norm", None)):
        if not hasattr(net, "fc_norm"):
            raise ConfigError(
                f"{type(net).__name__} has no layer that normalises a mean of tokens; take "
                "token=class or token=mean"
            )
        first, second = own.norm, own.fc_norm
        if _is_norm(first) != (token != "pooled"):
            own.norm, own.fc_norm = second, first
    own.global_pool = "token" if token == "class" else "avg"


def _has_choice(net: nn.Module) -> bool:
    """Return whether a network of timm reads its class token or a mean, as it is told."""
    families = {base.__module__.rpartition(".")[2] for base in type(net).__mro__}
    return (
        type(net).__module__.startswith("timm.")
        and bool(families & _FAMILIES)
        and isinstance(getattr(net, "cls_token", None), Tensor)
        and getattr(net, "head_dist", None) is None
        and getattr(net, "global_pool", None) in ("token", "avg")
    )


def _is_norm(module: object) -> bool:
    return isinstance(module, nn.Module) and not isinstance(module, nn.Identity)


class _MeanOfPatches(VisionTransformer):  # type: ignore[misc]
    """torchvision's transformer with the mean of the patches' tokens as its embedding."""

    def forward(self, x: Tensor) -> Tensor:
        """Classify normalised images [N, 3, H, W]: logits [N, K]."""
        tokens = self._process_input(x)
        first = self.class_token.expand(len(tokens), -1, -1)
        tokens = self.encoder(torch.cat([first, tokens], 1))
        logits: Tensor = self.heads(tokens[:, 1:].mean(1))
        return logits
