"""An attack of your own, which fastadv-eval judges with: random noise, the best of several.

Run: fastadv-eval --checkpoint RUN --data DATA --attack examples/own_attack.py:Noise
A package adds a name for it in its pyproject.toml:
    [project.entry-points."fastadv.attacks"]
    noise = "mypackage.attacks:Noise"
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastadv.attacks import AttackResult, SingleAttack, ThreatModel
from fastadv.kernels import ball_init
from fastadv.models import AttackView


class Noise(SingleAttack):
    """Uniform noise in the ball; the baseline that every attack must beat.

    Args:
        threat: Norm and radius; always the first argument.
        num_restarts: Number of draws; set by --num-restarts.
        seed: Random seed; set by --seed.
    """

    name = "noise"

    def __init__(
        self, threat: ThreatModel, num_restarts: int = 1, seed: int = 0
    ) -> None:
        self.threat, self.num_restarts, self.seed = threat, num_restarts, seed

    def describe(self) -> dict[str, Any]:
        """Return the settings, which the results table stores."""
        return super().describe() | {"num_restarts": self.num_restarts}

    def prepare(self, model: nn.Module) -> AttackView:
        """Return what `_attack` works on, made once for many batches."""
        return model if isinstance(model, AttackView) else AttackView(model)

    @torch.no_grad()
    def _attack(
        self, model: nn.Module, x: Tensor, y: Tensor, offset: int, active: Tensor | None
    ) -> AttackResult:
        view = self.prepare(model)
        x_adv, fooled = x / 255 if x.dtype == torch.uint8 else x.clone(), None
        for draw in range(self.num_restarts):
            noisy = ball_init(
                x,
                norm=self.threat.norm,
                eps=self.threat.eps,
                seed=self.seed + draw,
                offset=offset,
            )
            wrong = view(view.normalize(noisy)).argmax(1) != y
            x_adv = torch.where(wrong.view(-1, 1, 1, 1), noisy, x_adv)
            fooled = wrong if fooled is None else fooled | wrong
        nothing = torch.zeros(1, dtype=torch.int64, device=x.device)
        assert fooled is not None
        return AttackResult(x_adv, fooled, fooled.float(), nothing)
