"""Reading pickles of strangers: nothing runs, and the weights beside an attack are read."""

from __future__ import annotations

import argparse
import builtins
import collections
import datetime
import enum
import io
import operator
import os
import pickle
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from source_files import refused

from fastadv.models import NormalizedModel, create_model, load_model
from fastadv.models.checkpoint_contents import read_contents
from fastadv.models.safe_pickle import Stub, read_pickle
from fastadv.models.source import open_source


@pytest.fixture(scope="module")
def model() -> NormalizedModel:
    torch.set_num_threads(1)
    return create_model("resnet8_cifar", 4, seed=0).eval()


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A folder that every attack makes, and must not."""
    path = tmp_path / "owned"
    yield path
    assert not path.exists()
    assert os.environ["PATH"] != "owned"


class Gadget:
    """An object that calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def _gadgets(marker: Path) -> dict[str, Any]:
    python = f"import os; os.mkdir({str(marker)!r})"
    return {
        "mkdir": Gadget(os.mkdir, str(marker)),
        "system": Gadget(os.system, f"mkdir {marker}"),
        "Popen": Gadget(subprocess.Popen, ["mkdir", str(marker)]),
        "exec": Gadget(builtins.exec, python),
        "eval": Gadget(builtins.eval, f"__import__('os').mkdir({str(marker)!r})"),
        "getattr": Gadget(builtins.getattr, Gadget(os.getcwd), "mkdir"),
        "environment": Gadget(os.putenv, "PATH", "owned"),
        "nested load": Gadget(torch.load, str(marker)),
        "attribute": Gadget(operator.attrgetter("mkdir"), 1),
        "numpy": Gadget(np.load, str(marker), None, True),
        "bytes": Gadget(
            torch.storage._load_from_bytes,
            _saved(Gadget(os.mkdir, str(marker)), zipped=False),
        ),
        "subclass": Gadget(
            torch._tensor._rebuild_from_type_v2, os.mkdir, int, (str(marker),), None
        ),
        "partial": Gadget(Gadget, os.mkdir, str(marker)),
    }


def _saved(content: Any, zipped: bool = True, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    torch.save(
        content,
        stream,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    return stream.getvalue()


@pytest.mark.parametrize("written", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_weights_beside_attacks_are_read_and_nothing_runs(
    model: NormalizedModel, tmp_path: Path, marker: Path, written: str, protocol: int
) -> None:
    path = tmp_path / "w.pt"
    for name, gadget in _gadgets(marker).items():
        content = {"a": gadget, "model": model.net.state_dict(), "b": [gadget]}
        if written == "plain":
            path.write_bytes(pickle.dumps(content, protocol))
        else:
            path.write_bytes(_saved(content, written == "zip", protocol))
        loaded = load_model(path, "resnet8_cifar")
        assert torch.equal(loaded.head.weight, model.head.weight), name


def test_an_attack_is_named(
    model: NormalizedModel,
    tmp_path: Path,
    marker: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "w.pt"
    gadget = Gadget(os.system, f"mkdir {marker}")
    torch.save({"model": model.net.state_dict(), "x": gadget}, path)
    load_model(path)
    assert "it names posix.system, which weights do not need; it was not run" in (
        caplog.text.replace("nt.system", "posix.system")
    )


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _by_hand(marker: Path) -> dict[str, bytes]:
    """Pickles that no `dumps` writes."""
    where, system = str(marker), f"mkdir {marker}"
    return {
        "INST": b"(" + f"S'{system}'\n".encode() + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + f"S'{system}'\n".encode() + b"o.",
        "dotted": b"\x80\x04"
        + _text("builtins")
        + _text("object.__subclasses__")
        + b"\x93).",
        "dotted builder": b"\x80\x04"
        + _text("torch._utils")
        + _text("_rebuild_tensor_v2.__globals__")
        + b"\x93.",
        "state of a builder": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}"
        + _text("_build")
        + b"cos\nmkdir\nsb.",
        "state of a class": b"\x80\x02ccollections\nOrderedDict\nN}"
        + _text("fromkeys")
        + b"cos\nmkdir\ns\x86b.",
        "call of a call": b"\x80\x02cos\nmkdir\n)R" + _text(where) + b"\x85R.",
        "module": b"\x80\x02(" + _text("module") + b"cos\nmkdir\nXtQ.",
        "extension": b"\x80\x02\x82\x01.",
        "deep": b"(" * 100_000 + b"t" * 100_000 + b".",
        "endless": b"\x80\x04\x95" + b"\xff" * 8 + b".",
    }


@pytest.mark.parametrize("framed", [False, True])
def test_pickles_written_by_hand(tmp_path: Path, marker: Path, framed: bool) -> None:
    path = tmp_path / "w.pt"
    before = collections.OrderedDict.fromkeys, torch._utils._rebuild_tensor_v2
    for name, content in _by_hand(marker).items():
        head = b""
        if framed:  # as the fourth pickle of an old file of torch.save
            whole = _saved({"a": 1}, zipped=False)
            parts = whole.split(b"}q\x00X\x01\x00\x00\x00aq\x01K\x01s.")
            assert len(parts) == 2
            head = parts[0]
        path.write_bytes(head + content)
        message = refused(str(path))
        assert str(path) in message, name
    assert before == (
        collections.OrderedDict.fromkeys,
        torch._utils._rebuild_tensor_v2,
    )


class _Colour(enum.Enum):
    RED = 1


class _Options(dict):  # type: ignore[type-arg]
    pass


class _Names(list):  # type: ignore[type-arg]
    pass


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_harmless_objects_are_kept_apart(
    model: NormalizedModel, tmp_path: Path, zipped: bool, protocol: int
) -> None:
    extras = {
        "args": argparse.Namespace(lr=0.1, device=torch.device("cpu"), out=tmp_path),
        "best": np.float64(91.2),
        "when": datetime.datetime.now(datetime.UTC),
        "curve": collections.defaultdict(list, {"loss": [0.1]}),
        "counter": collections.Counter("aab"),
        "colour": _Colour.RED,
        "options": _Options(a=_Names([1])),
        "seen": {1, 2},
        "key": b"abc",
        "dtype": torch.float16,
        "range": range(3),
        "rng": np.random.default_rng(0),
        "schedule": torch.optim.lr_scheduler.CosineAnnealingLR(
            torch.optim.SGD(model.net.parameters(), 0.1), 3
        ),
    }
    path = tmp_path / "w.pt"
    path.write_bytes(_saved(extras | {"w": model.net.state_dict()}, zipped, protocol))
    content = read_pickle(path)
    assert content["seen"] in ({1, 2}, content["seen"])
    assert isinstance(content["args"], Stub)
    assert content["args"].state["lr"] == 0.1
    assert load_model(path).num_classes == 4


@pytest.mark.parametrize("zipped", [True, False])
def test_functions_of_dill(
    model: NormalizedModel, tmp_path: Path, zipped: bool
) -> None:
    """As MadryLab's CIFAR files hold them."""
    dill = pytest.importorskip("dill")
    path = tmp_path / "w.pt"
    content = {
        "model": model.net.state_dict(),
        "schedule": lambda epoch: epoch * model.num_classes,
        "class": type("Own", (), {"method": lambda self: 1})(),
    }
    torch.save(content, path, dill, 4, _use_new_zipfile_serialization=zipped)
    assert torch.equal(load_model(path).head.weight, model.head.weight)


def test_the_architecture_that_options_name_is_tried_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("timm")
    model = create_model("timm/resnet10t", 3, seed=0)
    args = argparse.Namespace(model="timm/resnet10t", lr=0.1)
    torch.save({"state_dict": model.net.state_dict(), "args": args}, tmp_path / "w.pt")
    assert open_source(str(tmp_path / "w.pt")).arch == "timm/resnet10t"
    assert "it names the architecture timm/resnet10t, which fits" in caplog.text
    args.model = "resnet10t"  # as timm's own script writes it
    torch.save({"state_dict": model.net.state_dict(), "args": args}, tmp_path / "w.pt")
    assert open_source(str(tmp_path / "w.pt")).arch == "timm/resnet10t"


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numpy_are_weights(protocol: int, order: Any, tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).copy(order=order),
        "b": np.arange(3, dtype=">f8"),
        "c": np.array(3),
    }
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": arrays}, protocol))
    found = read_contents(read_pickle(path)).tensors
    for key, array in arrays.items():
        assert found[f"model.{key}"].tolist() == array.tolist()
    objects = np.array([Gadget(os.mkdir, "owned")], dtype=object)
    path.write_bytes(pickle.dumps({"model": objects}, protocol))
    assert "needs code to be run" in refused(str(path))


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.jit.script(torch.nn.Linear(2, 3)).save(str(path))
    assert "is a TorchScript archive, a program" in refused(str(path))


def _old_tar(path: Path, weight: torch.Tensor) -> None:
    """Write one float tensor as torch 0.1.9 did: a tar of three files of pickles."""
    data = weight.flatten().numpy().tobytes()
    storages = b"".join(
        pickle.dumps(part, 2) for part in (1, (7, "cpu", torch.FloatStorage))
    )
    storages += struct.pack("<q", weight.numel()) + data + pickle.dumps([], 2)
    tensors = pickle.dumps(1, 2) + pickle.dumps((9, 7, torch.FloatTensor), 2)
    tensors += struct.pack("<ii", weight.dim(), 0)
    tensors += struct.pack(f"<{weight.dim()}q", *weight.shape)
    tensors += struct.pack(f"<{weight.dim()}q", *weight.stride())
    tensors += struct.pack("<q", 0)
    content = b"\x80\x02}X\x01\x00\x00\x00wX\x01\x00\x00\x009Qs."  # {"w": persistent 9}
    with tarfile.open(path, "w:") as archive:
        for name, part in (("storages", storages), ("tensors", tensors)):
            entry = tarfile.TarInfo(name)
            entry.size = len(part)
            archive.addfile(entry, io.BytesIO(part))
        entry = tarfile.TarInfo("pickle")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))


def test_tar_archives_of_2017(tmp_path: Path) -> None:
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    _old_tar(tmp_path / "w.pth.tar", weight)
    assert torch.equal(read_pickle(tmp_path / "w.pth.tar")["w"], weight)


# ---- values of no use ----


@pytest.mark.parametrize(
    ("key", "change", "complaint"),
    [
        ("conv1.weight", lambda t: t * float("nan"), "conv1.weight are not finite"),
        ("linear.bias", lambda t: t + float("inf"), "linear.bias are not finite"),
        ("bn1.running_var", lambda t: -t, "bn1.running_var are variances below 0"),
        ("conv1.weight", lambda t: t.to(torch.int8), "are torch.int8, which only"),
        ("conv1.weight", lambda t: t.to(torch.complex64), "are torch.complex64, which"),
        (
            "conv1.weight",
            lambda t: t.to(torch.float8_e4m3fn),
            "are torch.float8_e4m3fn",
        ),
        ("conv1.weight", lambda t: t > 0, "conv1.weight are torch.bool"),
    ],
)
def test_values_of_no_use_are_refused(
    model: NormalizedModel,
    tmp_path: Path,
    key: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    complaint: str,
) -> None:
    state = dict(model.net.state_dict())
    state[key] = change(state[key])
    torch.save(state, tmp_path / "w.pt")
    message = refused(str(tmp_path / "w.pt"))
    assert complaint in message
    assert "(1 tensors in all)" in message
