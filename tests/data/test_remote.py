"""Shards at http addresses: fetched when asked, once, and whole."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from record_files import reds, samples, write_tar

from fastadv.cli.data import main
from fastadv.data import open_dataset
from fastadv.errors import DataError

asked: list[str] = []


class Server(SimpleHTTPRequestHandler):
    """Serves a folder; breaks the connection inside files called cut."""

    def do_GET(self) -> None:
        asked.append(self.path)
        if "cut" not in self.path:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(bytes(10_240))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    asked.clear()
    root = tmp_path / "served"
    write_tar(root / "train-000000.tar", samples([5, 2, 9]))
    write_tar(root / "train-000001.tar", samples([4, 7]))
    write_tar(root / "val-000000.tar", samples([11, 10]))
    handler = partial(Server, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_at_an_address(address: str) -> None:
    train = f"{address}/train-{{000000..000001}}.tar"
    held = f"{address}/val-000000.tar"
    with pytest.raises(DataError, match=r"000000\.tar is not on this .*\(2 of 2 files"):
        open_dataset(train, test=held)
    assert asked == []
    splits = open_dataset(train, test=held, download=True)
    assert (reds(splits.train), reds(splits.test)) == ([5, 2, 9, 4, 7], [11, 10])
    assert splits.name == "train"
    fetched = ["/train-000000.tar", "/train-000001.tar", "/val-000000.tar"]
    assert asked == fetched
    again = open_dataset(train, test=held)
    assert again.train.fingerprint == splits.train.fingerprint
    both = open_dataset(f"{address}/{{train,val}}-000000.tar")
    assert (reds(both.train), reds(both.test)) == ([5, 2, 9], [11, 10])
    assert asked == fetched


def test_the_command_fetches(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    pattern = f"{address}/{{train,val}}-000000.tar"
    assert main(["stats", pattern]) == 1
    assert "--dataset-option download=true" in capsys.readouterr().err
    assert main(["stats", pattern, "--dataset-option", "download=true"]) == 0
    assert main(["stats", pattern]) == 0
    assert "train: 3 images" in capsys.readouterr().out


def test_what_cannot_be_fetched_leaves_nothing(address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10240 of 100000 bytes"):
        open_dataset(f"{address}/cut-0.tar", download=True)
    with pytest.raises(DataError, match=r"cannot fetch .*/x-1\.tar.*404"):
        open_dataset(f"{address}/x-1.tar", download=True)
    assert not [p for p in (tmp_path / "cache/remote").rglob("*") if p.is_file()]
    for bad in ("train-*.tar", "", "index.html"):
        with pytest.raises(DataError, match="does not name data files"):
            open_dataset(f"{address}/{bad}", download=True)
    assert len(asked) == 2
