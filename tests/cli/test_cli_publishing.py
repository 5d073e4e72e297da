"""fastadv-models push and claim: to a hub on this machine, and from the results table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Caller, image_folder
from local_hub import LocalHub, local_hub

from fastadv.data.sets import robustbench_images
from fastadv.models import create_model, load_model, save_model
from fastadv.models.source import open_source
from fastadv.results import ResultsTable

MEAN = (0.5, 0.4, 0.3)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The client of huggingface_hub, with a hub on this machine and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with local_hub() as served:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
            "https://huggingface.co", served.address
        )
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
        yield served


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A network with its evaluation in a table: on a set called cifar10, of two classes."""
    folder = tmp_path_factory.mktemp("published")
    model = create_model("resnet8_cifar", 2, mean=MEAN, std=(0.2,) * 3, seed=0)
    about = {"config": {"norm": "linf", "eps": 8 / 255}, "resolution": 16}
    save_model(model, folder / "m.safetensors", about)
    data = image_folder(folder / "cifar10")
    table = str(folder / "results")
    from fastadv.cli.eval import main

    words = [
        *("--checkpoint", str(folder / "m.safetensors"), "--data", str(data)),
        *("--attack", "autoattack", "--num-steps", "3", "--num-queries", "10"),
        *("--results", table, "--device", "cpu", "--json"),
    ]
    pytest.importorskip("pyautoattack")
    assert main(words) == 0
    return {"source": str(folder / "m.safetensors"), "results": table}


def _rows(evaluated: dict[str, str]) -> dict[bool, Any]:
    rows = ResultsTable(evaluated["results"]).rows()
    return {row.attack is not None: row for row in rows}


def test_push_and_pull(call: Caller, hub: LocalHub, evaluated: dict[str, str]) -> None:
    words = [evaluated["source"], "lab/robust", "--results", evaluated["results"]]
    result = call("models", "push", *words)
    assert result.code == 0, result.err
    assert "open it as hf:lab/robust" in result.out
    files = hub.repos["lab/robust"]
    assert {"README.md", "model.safetensors"} <= set(files)
    # The card: its header is YAML, its numbers are those of the table.
    _, header, text = files["README.md"].decode().split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["library_name"] == "fastadv"
    values = sorted(
        each["metrics"][0]["value"] for each in facts["model-index"][0]["results"]
    )
    rows = _rows(evaluated)
    assert values == pytest.approx(sorted(row.value for row in rows.values()), abs=1e-4)
    assert f"| {rows[True].value:.2f} |" in text
    assert "autoattack, linf 8/255" in text
    assert "training: adversarial, linf 8/255" in text
    assert 'load_model("hf:lab/robust", download=True)' in text
    # Pulled again by the name that the card gives.
    pulled = load_model("hf:lab/robust", download=True)
    ours = load_model(evaluated["source"])
    assert torch.equal(pulled.head.weight, ours.head.weight)
    assert pulled.mean.tolist() == pytest.approx(MEAN)
    source = open_source("hf:lab/robust")
    assert (source.norm, source.eps, source.resolution) == ("linf", 8 / 255, 16)


def test_a_card_without_results(
    call: Caller, hub: LocalHub, evaluated: dict[str, str], tmp_path: Path
) -> None:
    words = [evaluated["source"], "lab/x", "--results", tmp_path / "none", "--dry-run"]
    result = call("models", "push", *words)
    assert result.code == 0, result.err
    assert "None of the results table is of this network." in result.out
    assert hub.requests == []
    other = tmp_path / "other.safetensors"
    save_model(create_model("resnet8_cifar", 2, seed=1), other)
    words = [other, "lab/x", "--results", evaluated["results"], "--dry-run"]
    card = call("models", "push", *words).out
    assert "None of the results table is of this network." in card
    assert "training: unknown" in card


def test_what_a_hub_refuses(
    call: Caller, hub: LocalHub, evaluated: dict[str, str]
) -> None:
    result = call("models", "push", evaluated["source"], "robust")
    assert "'robust' is no repository; write it as ORG/NAME" in result.error
    hub.refuse = True
    result = call("models", "push", evaluated["source"], "lab/robust")
    assert result.code == 1
    assert f"could not push to lab/robust at {hub.address}" in result.error
    assert "hf auth login" in result.error


PAPER = ["--title", "T", "--authors", "A, B", "--link", "https://x.org", "--venue", "V"]


def test_the_claim_is_the_table(
    call: Caller, evaluated: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "Author2026Title.json"
    words = [evaluated["source"], out, "--results", evaluated["results"], *PAPER]
    result = call("models", "claim", *words, "--dataset", "cifar10")
    assert result.code == 0, result.err
    found = json.loads(out.read_text())
    rows = _rows(evaluated)
    assert found["clean_acc"] == f"{rows[False].value:.2f}"
    assert found["autoattack_acc"] == f"{rows[True].value:.2f}"
    # The fields of the files that RobustBench has.
    assert list(found) == [
        *("link", "name", "authors", "additional_data", "number_forward_passes"),
        *("dataset", "venue", "architecture", "eps", "clean_acc", "reported"),
        "autoattack_acc",
    ]
    assert (found["eps"], found["dataset"]) == ("8/255", "cifar10")
    again = call("models", "claim", *words, "--dataset", "cifar10")
    assert "exists; choose another file" in again.error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "cifar10", "--norm", "l2"], "by AutoAttack with l2 0.5; run:"),
        (["--dataset", "imagenet"], "on imagenet by AutoAttack with linf 4/255; run:"),
        (["--dataset", "imagenet", "--norm", "l2"], "has no leaderboard of imagenet"),
    ],
)
def test_a_claim_without_its_numbers(
    call: Caller, evaluated: dict[str, str], tmp_path: Path, words: list[str], said: str
) -> None:
    common = [evaluated["source"], tmp_path / "x.json", *PAPER]
    common += ["--results", evaluated["results"]]
    result = call("models", "claim", *common, *words)
    assert result.code == 2
    assert said in result.error
    assert not (tmp_path / "x.json").exists()


# ---- lists of images ----


def test_a_list_chooses_the_images(
    call: Caller, evaluated: dict[str, str], tmp_path: Path
) -> None:
    data = Path(evaluated["source"]).parent / "cifar10"
    names = sorted(str(p.relative_to(data)) for p in (data / "val").rglob("*.jpg"))
    listed = tmp_path / "list.txt"
    common = ["--checkpoint", evaluated["source"], "--data", data, "--eps", 0, "--json"]
    found = []
    for lines in (
        names[:3],  # val/a/0.png
        [f"{name.removeprefix('val/')} 0" for name in names[:3]],
        ["0", "1", "2"],
    ):
        listed.write_text("\n".join(lines) + "\n\n")
        result = call("eval", *common, "--image-list", listed)
        assert result.code == 0, result.err
        found.append(json.loads(result.out))
    assert {each["n"] for each in found} == {3}
    assert len({each["clean_acc"] for each in found}) == 1
    for lines, said in (
        ([names[0], names[0]], "names an image twice"),
        (["val/none.jpg"], "names 'val/none.jpg', which is not in"),
        (["999"], "has position 999"),
        ([], "is empty"),
    ):
        listed.write_text("\n".join(lines))
        assert said in call("eval", *common, "--image-list", listed).error
    missing = call("eval", *common, "--image-list", tmp_path / "none.txt")
    assert "cannot read the image list" in missing.error
    both = call("eval", *common, "--image-list", listed, "--num-images", 3)
    assert "--image-list" in both.error
    assert "leave one out" in both.error


@pytest.mark.parametrize("way", ["package", "address"])
def test_robustbenchs_list_is_found_and_checked(
    call: Caller,
    evaluated: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:
    """A list of three images stands for the 5,000; nothing of the package is imported."""
    data = Path(evaluated["source"]).parent / "cifar10"
    names = sorted(str(p.relative_to(data / "val")) for p in data.rglob("val/*/*.jpg"))
    lines = [names[4], names[0], names[7]]
    folder = tmp_path / "robustbench" / "helper_files"
    folder.mkdir(parents=True)
    file = folder / "imagenet_test_image_ids.txt"
    file.write_text("\n".join(lines))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    monkeypatch.setattr(robustbench_images, "SHA256", digest)
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    common = ["--checkpoint", evaluated["source"], "--data", data, "--eps", 0, "--json"]
    words = [*common, "--image-list", "robustbench"]
    if way == "package":
        (tmp_path / "robustbench" / "__init__.py").write_text("raise SystemExit(3)")
        monkeypatch.syspath_prepend(str(tmp_path))
    else:
        monkeypatch.setattr(robustbench_images, "URL", file.as_uri())
        monkeypatch.setattr(robustbench_images, "_installed", lambda: None)
        assert "pip install robustbench" in call("eval", *words).error
        words.append("--download")
    result = call("eval", *words)
    assert result.code == 0, result.err
    assert json.loads(result.out)["n"] == 3
    if way == "package":
        file.write_text("\n".join(names[:5]))
        assert "lists other images than RobustBench's" in call("eval", *words).error


def test_a_claim_on_imagenet_needs_the_images_of_the_leaderboard(
    call: Caller, evaluated: dict[str, str], tmp_path: Path
) -> None:
    common = [evaluated["source"], tmp_path / "x.json", *PAPER]
    words = [*common, "--results", evaluated["results"], "--dataset", "imagenet"]
    assert "--image-list robustbench" in call("models", "claim", *words).error
