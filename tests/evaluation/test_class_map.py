"""Class maps: by names, identifiers, numbers and files, and everything that is no map."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastadv.errors import ConfigError, DataError
from fastadv.evaluation.class_map import ClassMap, class_map_for
from fastadv.models import create_model, save_model
from fastadv.models.source import Source, open_source

WNIDS = ["n01440764", "n01443537", "n02123045", "n02012849", "n03126707", "n99999999"]
# tench, goldfish, tabby, crane (the bird), crane (the machine), and no ImageNet class.


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Source]:
    """A network of classes with names, or of so many without."""
    folder = tmp_path_factory.mktemp("sources")

    def source(classes: list[str] | int) -> Source:
        count = classes if isinstance(classes, int) else len(classes)
        file = folder / f"network{abs(hash(str(classes)))}.safetensors"
        metadata = {} if isinstance(classes, int) else {"classes": classes}
        save_model(create_model("resnet8_cifar", count, seed=0), file, metadata)
        return open_source(str(file))

    return source


def test_a_part_of_the_classes_by_identifier(make) -> None:
    found = class_map_for(make(WNIDS), ["n02123045", "n01440764", "n00000000"])
    assert found.classes == ("n02123045", "n01440764")
    assert found.outputs == ((2,), (0,))
    assert found.ids == (0, 1)
    assert found.left_out == ("n00000000",)
    assert "2 classes by 2 of 6 outputs" in str(found)
    assert "'n00000000'" in str(found)
    logits = torch.arange(12.0).reshape(2, 6)
    assert found.scores(logits).tolist() == [[2, 0], [8, 6]]


def test_names_but_for_case_and_underscores(make) -> None:
    source = make(["polar bear", "Grey_Wolf", "tank"])
    found = class_map_for(source, ["grey wolf", "Polar-Bear"])
    assert found.outputs == ((1,), (0,))


def test_english_names_of_imagenet(make) -> None:
    pytest.importorskip("timm", reason="the names of ImageNet's classes come with timm")
    source = make(WNIDS)
    found = class_map_for(source, ["goldfish", "Carassius auratus", "tabby"][::2])
    assert found.outputs == ((1,), (2,))
    # Two outputs are called crane: that is a hole, not a guess.
    found = class_map_for(source, ["crane", "tench", "tabby cat"])
    assert found.left_out == ("crane",)
    # And the other way round: identifiers of the data, English names of the network.
    found = class_map_for(
        make(["goldfish", "tench", "dog"]), ["n01440764", "n01443537"]
    )
    assert found.outputs == ((1,), (0,))


def test_folders_called_by_numbers(make) -> None:
    """ImageNet-V2: bytewise order of folders is not the order of the outputs."""
    names = sorted(str(i) for i in range(12))
    found = class_map_for(make([f"class {c}" for c in "abcdefghijkl"]), names)
    assert names[2] == "10"
    assert found.outputs == tuple((int(name),) for name in names)
    assert not found.is_identity
    # Networks of the same names in the same order are left alone.
    assert class_map_for(make(names), names).is_identity


def test_networks_without_names(make) -> None:
    assert class_map_for(make(3), ["x", "y", "z"]).is_identity
    with pytest.raises(ConfigError, match="does not state the names of its 3 classes"):
        class_map_for(make(3), ["x", "y"])


def test_files(make, tmp_path: Path) -> None:
    source = make(WNIDS)
    file = tmp_path / "map.csv"
    file.write_text("# ObjectNet\nfish,n01440764\nfish,1\ncat , n02123045\nunknown,\n")
    found = class_map_for(source, ["cat", "fish", "unknown"], str(file))
    assert found.outputs == ((2,), (0, 1))
    assert found.left_out == ("unknown",)
    logits = torch.tensor([[0.0, 1.0, 1.2, 9.0, 9.0, 9.0]])
    scores = found.scores(logits)
    # The probability of a category is the sum of those of its classes.
    shares = logits.softmax(1)[0]
    expected = shares[2] / (shares[0] + shares[1] + shares[2])
    assert scores.softmax(1)[0, 0] == pytest.approx(float(expected))
    assert scores.argmax() == 1
    other = tmp_path / "map.json"
    other.write_text(json.dumps({"fish": ["n01440764", 1], "cat": "n02123045"}))
    same = class_map_for(source, ["cat", "fish"], str(other))
    assert same.outputs == found.outputs
    assert same.digest == found.digest is not None
    index = tmp_path / "imagenet_class_index.json"
    names = {str(i): [f"n0000000{i}", name] for i, name in enumerate("abc")}
    index.write_text(json.dumps(names))
    assert class_map_for(make(3), ["n00000002", "b"], str(index)).outputs == (
        (2,),
        (1,),
    )


BAD = [
    ("map.csv", "cat,n02123045\n", "no entry for 1 of the 2 classes.*'fish'"),
    (
        "map.csv",
        "cat,n02123045\nfish,n01443538\n",
        "no class of .*similar are n01443537",
    ),
    ("map.csv", "cat,7\nfish,0\n", "'7', which stands for 'cat', is no class"),
    ("map.csv", "cat,0\nfish,n01440764\n", "'cat' and 'fish' of the data both"),
    ("map.csv", "cat,0\ncat,0\nfish,1\n", "line 2 is there twice"),
    ("map.csv", "cat\nfish,1\n", "line 1 has 1 cells"),
    ("map.csv", "", "it is empty"),
    ("map.csv", "cat,0\nfish,\n", "knows 1 of the 2 classes"),
    ("map.json", '{"cat": [0], "cat": [1], "fish": [2]}', "'cat' is there twice"),
    ("map.json", "[1, 2]", "no object"),
    ("map.json", "{", "is no class map"),
    ("map.json", '{"cat": [[0]], "fish": [1]}', "no names or numbers"),
    ("map.json", '{"0": ["a"], "1": ["b"]}', "names 2 outputs, and .* has 6"),
    ("absent.csv", None, "No such file"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_bad_files(
    make, tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        class_map_for(make(WNIDS), ["cat", "fish"], str(tmp_path / name))


def test_no_common_classes(make) -> None:
    with pytest.raises(
        ConfigError, match=r"knows 0 of the 2 .*'ship', 'truck'.*class_map"
    ):
        class_map_for(make(WNIDS), ["ship", "truck"])
    with pytest.raises(ConfigError, match="'Tank' and 'tank' of the data both"):
        class_map_for(make(["tank", "dog"]), ["Tank", "tank"])


def test_the_identity_returns_the_logits_themselves() -> None:
    same = ClassMap(("a", "b"), (0, 1), ((0,), (1,)), (), 2)
    logits = torch.randn(3, 2)
    assert same.scores(logits) is logits
    assert same.digest is None
