"""Sources that are fetched: torch.hub's cache, the Hugging Face hub, timm."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors.torch
import torch
import torchvision
from source_files import MEAN, STD, refused, robustness_run

from fastadv.errors import CheckpointError
from fastadv.files import file_sha256
from fastadv.models import (
    NormalizedModel,
    create_model,
    find_weights,
    hub,
    load_model,
    save_model,
    weights,
)
from fastadv.models.listing import list_published
from fastadv.models.published import facts_from_name
from fastadv.models.source import open_source
from fastadv.reporting.literature import accuracy_of_file


@pytest.fixture
def model() -> NormalizedModel:
    return create_model("resnet8_cifar", 10, mean=MEAN, std=STD, seed=0).eval()


@pytest.fixture
def torch_hub(tmp_path: Path) -> Any:
    """An empty torch.hub cache."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub" / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hf"


def snapshot(cache: Path, repo: str, revision: str = "main", commit: int = 1) -> Path:
    """The folder of a repository in the cache, as huggingface_hub lays it out."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    digest = f"{commit:040x}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(digest)
    (folder / "snapshots" / digest).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / digest


# ---- torchvision ----


def test_torchvision_weights_come_from_the_hub_cache(torch_hub: Path) -> None:
    message = refused("torchvision:resnet18/IMAGENET1K_V1")
    assert str(torch_hub / "resnet18-f37072fd.pth") in message
    assert "add `download`" in message
    assert not torch_hub.exists()
    net = torchvision.models.resnet18()
    torch_hub.mkdir(parents=True)
    torch.save(net.state_dict(), torch_hub / "resnet18-f37072fd.pth")
    for name in ("resnet18", "resnet18/IMAGENET1K_V1", "resnet18/DEFAULT"):
        source = open_source(f"torchvision:{name}")
        assert (source.name, source.eps) == (f"torchvision:{name}", 0)
        assert (source.arch, source.resolution) == ("resnet18", 224)
    loaded = source.load()
    assert torch.equal(loaded.net.fc.weight, net.fc.weight)
    assert loaded.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_inceptions_have_the_statistics_that_torchvision_gives_them(
    torch_hub: Path,
) -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.googlenet(init_weights=False, transform_input=True)
    torch_hub.mkdir(parents=True)
    torch.save(theirs.state_dict(), torch_hub / "googlenet-1378be20.pth")
    images = torch.rand(2, 3, 64, 64)
    usual = torchvision.transforms.functional.normalize(
        images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    ours = open_source("torchvision:googlenet").load().eval()
    torch.testing.assert_close(ours(images), theirs.eval()(usual))


def test_downloads_are_checked_by_the_hash_in_their_name(
    torch_hub: Path, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    content.write_bytes(b"weights")
    good = tmp_path / f"net-{file_sha256(content)[:8]}.pth"
    bad = tmp_path / "net-00000000.pth"
    for file in (good, bad):
        file.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match="not on this machine"):
        hub.torch_hub_file(good.as_uri(), "it", download=False)
    assert hub.torch_hub_file(good.as_uri(), "it", download=True).read_bytes() == (
        b"weights"
    )
    with pytest.raises(CheckpointError, match=r"could not fetch it .*invalid hash"):
        hub.torch_hub_file(bad.as_uri(), "it", download=True)
    with pytest.raises(CheckpointError, match="could not fetch it"):
        hub.torch_hub_file((tmp_path / "none.pth").as_uri(), "it", download=True)
    assert [path.name for path in torch_hub.iterdir()] == [good.name]


# ---- timm and Hugging Face ----


def test_timm_weights_come_from_the_hugging_face_cache(hf_cache: Path) -> None:
    timm = pytest.importorskip("timm")
    message = refused("timm:resnet10t")
    assert (
        "model.safetensors and pytorch_model.bin of timm/resnet10t.c3_in1k" in message
    )
    assert str(hf_cache) in message
    net = timm.create_model("resnet10t")
    folder = snapshot(hf_cache, "timm/resnet10t.c3_in1k")
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    source = open_source("timm:resnet10t.c3_in1k")
    config = timm.get_pretrained_cfg("resnet10t.c3_in1k")
    assert (source.arch, source.eps) == ("timm/resnet10t", 0)
    assert source.resolution == config.input_size[-1] != 224
    loaded = source.load()
    assert torch.equal(loaded.net.fc.weight, net.fc.weight)
    assert loaded.mean.tolist() == pytest.approx(config.mean)
    assert find_weights("timm:resnet10t").file == source.file


def test_hugging_face_repositories(model: NormalizedModel, hf_cache: Path) -> None:
    one = snapshot(hf_cache, "lab/robust")
    save_model(model, one / "model.safetensors", {"config": {"norm": "l2", "eps": 3.0}})
    other = snapshot(hf_cache, "lab/robust", revision="v2", commit=2)
    torch.save(robustness_run(model, "model."), other / "resnet8_cifar_l2_eps0.05.ckpt")
    source = open_source("hf:lab/robust")
    assert (source.name, source.norm, source.eps) == ("hf:lab/robust", "l2", 3.0)
    source = open_source("hf:lab/robust@v2/resnet8_cifar_l2_eps0.05.ckpt")
    assert source.eps == 0.05
    assert "not in the Hugging Face cache" in refused("hf:lab/robust@v2")
    with pytest.raises(CheckpointError, match=r"could not fetch hf:lab/other"):
        load_model("hf:lab/other", download=True)


def test_timms_folder_layout(hf_cache: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet10t", num_classes=7)
    folder = snapshot(hf_cache, "me/mine")
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    about = {"mean": MEAN, "std": STD, "input_size": [3, 96, 96]}
    config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))
    source = open_source("hf:me/mine")
    loaded = source.load()
    assert (source.arch, source.resolution) == ("timm/resnet10t", 96)
    assert loaded.num_classes == 7
    assert loaded.mean.tolist() == pytest.approx(MEAN)
    assert torch.equal(loaded.net.fc.weight, net.fc.weight)
    (folder / "config.json").write_text("{")
    assert "could not read" in refused("hf:me/mine")


class _Hub(BaseHTTPRequestHandler):
    """What a download asks of the Hugging Face hub; every new file is a commit."""

    files: ClassVar[dict[str, bytes]] = {}
    stated: ClassVar[dict[str, str]] = {}  # SHA-256 of large files, as it is stated

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        content = self._answer()
        if content is not None:
            self.wfile.write(content)

    def _answer(self) -> bytes | None:
        name = self.path.partition("/resolve/main/")[2]
        content = self.files.get(name)
        self.send_response(404 if content is None else 200)
        self.send_header("X-Repo-Commit", f"{len(self.files):040x}")
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
        else:
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            if name in self.stated:
                self.send_header("X-Linked-Etag", f'"{self.stated[name]}"')
                self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def hf_hub(hf_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hub on this machine, as its files by name; the client is the real one."""
    constants = pytest.importorskip("huggingface_hub.constants")
    files: dict[str, bytes] = {}
    monkeypatch.setattr(_Hub, "files", files)
    monkeypatch.setattr(_Hub, "stated", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        "https://huggingface.co", address
    )
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield files
    server.shutdown()
    server.server_close()


def test_download_from_hugging_face(
    model: NormalizedModel, tmp_path: Path, hf_cache: Path, hf_hub: dict[str, bytes]
) -> None:
    file = tmp_path / "w.pt"
    torch.save(model.net.state_dict(), file)
    hf_hub["config.json"] = json.dumps({"pretrained_cfg": {}}).encode()
    source = "hf:org/name,arch=resnet8_cifar"
    with pytest.raises(CheckpointError, match="the repository holds no model"):
        load_model(source, download=True)
    hf_hub["pytorch_model.bin"] = file.read_bytes()
    with pytest.raises(CheckpointError, match="add `download`"):
        load_model(source)
    fetched = load_model(source, download=True)
    assert torch.equal(fetched.head.weight, model.head.weight)
    assert find_weights(source).file.is_relative_to(hf_cache)  # and now without


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files_are_fetched_together(
    model: NormalizedModel, hf_cache: Path, hf_hub: dict[str, bytes], stem: str
) -> None:
    state = model.net.state_dict()
    keys, names = [*state], [stem.replace(".", f"-0000{i}-of-00002.") for i in (1, 2)]
    parts = [keys[: len(keys) // 2], keys[len(keys) // 2 :]]
    for name, part in zip(names, parts, strict=True):
        tensors = {key: state[key] for key in part}
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        safe = safetensors.torch.save(tensors)
        hf_hub[name] = safe if stem.endswith("safetensors") else buffer.getvalue()
    places = {key: names[key in parts[1]] for key in keys}
    hf_hub[f"{stem}.index.json"] = json.dumps({"weight_map": places}).encode()
    hf_hub["config.json"] = b"{}"
    source = "hf:org/name,arch=resnet8_cifar,mean=0.5,std=0.5"
    second = hf_hub.pop(names[1])
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        load_model(source, download=True)
    assert "add `download`" in refused(source)  # a part is not enough
    hf_hub[names[1]] = second
    fetched = load_model(source, download=True)
    hf_hub.clear()
    again = load_model(source)
    for found in (fetched, again):
        assert all(torch.equal(found.net.state_dict()[key], state[key]) for key in keys)


# ---- networks of the papers by name ----


def _published(name: str, folder: Path, classes: int = 2) -> tuple[Path, torch.Tensor]:
    """Write a checkpoint as the authors did; return its file and the head's weights."""
    known = facts_from_name(name)
    assert known is not None
    made = create_model(known[0], classes, mean=MEAN, std=STD, seed=1)
    path = folder / f"{name}.ckpt"
    # Networks other than ResNets carry one more `model.`
    inner = "" if "resnet" in name else "model."
    state = {"module.normalizer.new_mean": made.mean.view(3, 1, 1)}
    state["module.normalizer.new_std"] = made.std.view(3, 1, 1)
    for key, value in made.net.state_dict().items():
        state[f"module.model.{inner}{key}"] = value
        state[f"module.attacker.model.{inner}{key}"] = value
    torch.save({"model": state, "epoch": 90, "adv_prec1": torch.tensor(40.0)}, path)
    return path, made.head.weight.detach()


def test_published_networks_are_fetched_when_asked(
    tmp_path: Path, hf_cache: Path, hf_hub: dict[str, bytes], torch_hub: Path
) -> None:
    path, head = _published("mnasnet_l2_eps3", tmp_path)
    name = "salman2020:mnasnet_l2_eps3"
    assert "mnasnet_l2_eps3.ckpt of madrylab/robust-imagenet-models" in refused(name)
    assert "download='yes' must be true or false" in refused(f"{name},download=yes")
    hf_hub[path.name] = path.read_bytes()
    _Hub.stated[path.name] = "0" * 64
    message = refused(f"{name},download=true")
    assert "mnasnet_l2_eps3.ckpt has another hash than the hub states" in message
    assert "not in the Hugging Face cache" in refused(name)  # nothing of it stays
    _Hub.stated[path.name] = file_sha256(path)
    source = open_source(f"{name},download=true")
    assert torch.equal(source.load().head.weight, head)
    hf_hub.clear()  # from now on it is in the cache, under either name
    for known in (name, "salman2020:mnasnet1_0_l2_eps3.0"):
        source = open_source(f"{known},download=false")
        assert (source.name, source.arch) == (known, "mnasnet1_0")
        assert (source.norm, source.eps, source.kind) == ("l2", 3.0, "robust")
        assert source.load().mean.tolist() == pytest.approx(MEAN)
    assert accuracy_of_file(str(source.file)) == 41.83
    listed = list_published("salman2020:mnasnet*")
    assert [row["file"] for row in listed.values()] == [None, str(source.file)]
    assert listed[name]["bytes"] == path.stat().st_size


def test_a_published_network_that_torch_hub_fetched_is_found(
    tmp_path: Path, hf_cache: Path, torch_hub: Path
) -> None:
    torch_hub.mkdir(parents=True)
    path, head = _published("shufflenet_l2_eps0", torch_hub)
    source = open_source("salman2020:shufflenet_l2_eps0")
    assert (source.file, source.eps, source.kind) == (path, 0.0, "standard")
    assert torch.equal(source.load().head.weight, head)


def test_networks_of_robustbench(
    tmp_path: Path, torch_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = torchvision.models.resnet18(num_classes=3)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    state["normalize.mean"] = torch.tensor(MEAN).view(1, 3, 1, 1)
    state["normalize.std"] = torch.tensor(STD).view(1, 3, 1, 1)
    torch.save(state, tmp_path / "1OThCOQCOxY6lAgxZxgiK3YuZDD7PPfPx")
    monkeypatch.setattr(weights, "ROBUSTBENCH_URL", f"{tmp_path.as_uri()}/{{}}")
    name = "robustbench:Salman2020Do_R18"
    assert "add `download`" in refused(name)
    source = open_source(name, download=True)
    assert source.file == torch_hub / "robustbench/imagenet/Linf/Salman2020Do_R18.pt"
    assert (source.arch, source.norm, source.eps) == ("resnet18", "linf", 4 / 255)
    assert torch.equal(source.load().net.fc.weight, net.fc.weight)
    assert source.load().mean.tolist() == pytest.approx(MEAN)
    # A page that the drive shows instead of a file is no checkpoint.
    fast = tmp_path / "1deM2ZNS5tf3S_-eRURJi-IlvUL8WJQ_w"
    fast.write_text("<!DOCTYPE html><html>Too many users have viewed this file")
    with pytest.raises(CheckpointError, match="is a web page"):
        open_source("robustbench:Wong2020Fast", download=True)
    # The folder of robustbench itself comes first.
    own = tmp_path / "models/imagenet/corruptions/Geirhos2018_SIN.pt"
    own.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet50(num_classes=2).state_dict(), own)
    source = open_source("robustbench:Geirhos2018_SIN")
    assert (source.kind, source.eps, source.file) == (
        "texture",
        0.0,
        own.relative_to(tmp_path),
    )
    message = refused("robustbench:Geirhos2018_SIM")
    assert "perhaps you meant: Geirhos2018_SIN" in message
    assert "load those with robustbench" in refused("robustbench:Carmon2019Unlabeled")


def test_hugging_face_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "pip install huggingface-hub" in refused("hf:org/name")
