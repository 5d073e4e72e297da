"""Names of the published checkpoints of Salman et al. 2020, and what they stand for."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from source_files import MEAN, STD

from fastadv.errors import ConfigError
from fastadv.models import create_model, state_hash
from fastadv.models.architecture_names import ARCHITECTURES, SALMAN2020
from fastadv.models.published import (
    FILE_ARCHITECTURES,
    SALMAN2020_NAMES,
    facts_from_name,
    salman2020_file,
)
from fastadv.models.source import open_source
from fastadv.reporting.literature import accuracy_of_file, published_weights
from fastadv.threat import parse_pixels


def _released() -> dict[str, dict[str, str]]:
    """The rows of the authors' README, by the name of the file."""
    table = files("fastadv.reporting").joinpath("literature/salman2020_checkpoints.csv")
    rows = csv.DictReader(table.read_text().splitlines())
    found = {}
    for row in rows:
        key, _, file = row["setting"].partition("=")
        if key == "checkpoint":
            found[file] = row
    return found


def test_the_names_are_those_of_the_release() -> None:
    released = _released()
    assert sorted(released) == sorted(f"{name}.ckpt" for name in SALMAN2020_NAMES)
    for name in SALMAN2020_NAMES:
        row, known = released[f"{name}.ckpt"], facts_from_name(name)
        assert known is not None
        arch, norm, eps = known
        assert arch == row["architecture"] in ARCHITECTURES
        assert eps == pytest.approx(parse_pixels(row["eps"]))
        assert norm == (row["norm"] if eps else None)
        assert accuracy_of_file(f"/cache/{name}.ckpt") == float(row["value"])
        assert published_weights(f"/cache/{name}.ckpt", "salman2020")
    assert {facts_from_name(name)[0] for name in SALMAN2020_NAMES} == set(SALMAN2020)  # type: ignore[index]


def test_other_spellings_and_near_misses() -> None:
    assert salman2020_file("resnet50_linf_eps4") == "resnet50_linf_eps4.0.ckpt"
    assert salman2020_file("densenet161_l2_eps3.0") == "densenet_l2_eps3.ckpt"
    assert salman2020_file("resnet18_l2_eps0.ckpt") == "resnet18_l2_eps0.ckpt"
    with pytest.raises(ConfigError, match="meant: vgg16_bn_l2_eps3, vgg16_bn_l2_eps0"):
        salman2020_file("vgg16_bn_l2_eps1")
    with pytest.raises(ConfigError, match="meant: resnet18_linf_eps"):
        salman2020_file("resnet18_linf_eps3")


@pytest.mark.parametrize("published", FILE_ARCHITECTURES)
def test_checkpoints_under_the_authors_own_names(
    published: str, tmp_path: Path
) -> None:
    arch = FILE_ARCHITECTURES[published]
    made = create_model(arch, 2, mean=MEAN, std=STD, seed=0)
    state = {"module.normalizer.new_mean": made.mean.view(3, 1, 1)}
    state["module.normalizer.new_std"] = made.std.view(3, 1, 1)
    for key, value in made.net.state_dict().items():
        state[f"module.model.model.{key}"] = value
        state[f"module.attacker.model.model.{key}"] = value
    path = tmp_path / f"{published}_l2_eps3.ckpt"
    torch.save({"model": state, "epoch": 90, "nat_prec1": torch.tensor(70.0)}, path)
    source = open_source(str(path))
    assert (source.arch, source.norm, source.eps) == (arch, "l2", 3.0)
    assert state_hash(source.load()) == state_hash(made.eval())


def test_models_of_the_robustness_package_state_their_radius() -> None:
    assert facts_from_name("imagenet_l2_3_0") == ("resnet50", "l2", 3.0)
    assert facts_from_name("imagenet_linf_8") == ("resnet50", "linf", 8 / 255)
    assert facts_from_name("imagenet_linf_16") is None
