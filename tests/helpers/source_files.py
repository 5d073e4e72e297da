"""What tests of sources share: a file as `robustness` leaves it, and refusals."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

from fastadv.errors import CheckpointError, ConfigError
from fastadv.models import NormalizedModel, load_model

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def robustness_run(model: NormalizedModel, inner: str) -> dict[str, Any]:
    """All that a training of `robustness` saved: optimiser, schedule, apex, precision."""
    mean, std = (t.view(3, 1, 1) for t in (model.mean, model.std))
    state = {"module.normalizer.new_mean": mean, "module.normalizer.new_std": std}
    for key, value in model.net.state_dict().items():
        state[f"module.model.{inner}{key}"] = value
        state[f"module.attacker.model.{inner}{key}"] = value
    state["module.attacker.normalize.new_mean"] = mean
    state["module.attacker.normalize.new_std"] = std
    optimizer = torch.optim.SGD(model.net.parameters(), lr=0.1, momentum=0.9)
    model.net(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "epoch": 90,
        "amp": OrderedDict(loss_scaler0={"loss_scale": 65536.0, "unskipped": 1999}),
        "adv_prec1": torch.tensor(41.2),
    }


def refused(source: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_model(source)
    return str(caught.value)
