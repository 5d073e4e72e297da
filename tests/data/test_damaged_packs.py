"""Packs that are not whole: refused when opened, listed by verify, mended by pack."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_packing import files, tree

from fastadv.cli.data import main
from fastadv.data import open_dataset
from fastadv.data.files.packing import pack
from fastadv.errors import ConfigError, DataError

PROGRAM = "import sys; from fastadv.files import FolderLock; from pathlib import Path\n"
PROGRAM += "lock = FolderLock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()\n"


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTADV_CACHE", str(tmp_path / "cache"))
    pack(open_dataset(tree(tmp_path / "set")), tmp_path / "out", shard_bytes=12_000)
    return tmp_path / "out"


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 1
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("gone", ["train-*.tar", "train-000001.tar", "val-*.tar"])
def test_missing_shards_are_refused_and_named(
    gone: str, packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = sorted(packed.glob(gone))
    for shard in lost:
        shard.unlink()
    with pytest.raises(DataError, match=f"{len(lost)} file.*{lost[0].name}"):
        open_dataset(packed)
    assert main(["stats", str(packed)]) == 1
    assert lost[0].name in capsys.readouterr().err
    corrupt = verified(packed, capsys)["corrupt"]
    for shard in lost:
        assert [str(shard), "is in manifest.json but not there"] in corrupt


def test_patterns_miss_what_they_name(packed: Path) -> None:
    (packed / "train-000001.tar").unlink()
    for pattern in ("*.tar", "{train,val}-*.tar", "train-00000?.tar"):
        with pytest.raises(DataError, match=r"not whole.*train-000001\.tar"):
            open_dataset(packed / pattern)
    named = open_dataset(packed / "train-*0.tar", test=packed / "val-000000.tar")
    assert 0 < len(named.train) < 20
    (packed / "val-000000.tar").unlink()
    with pytest.raises(DataError, match=r"not whole.*val-000000\.tar"):
        open_dataset(packed / "train-000000.tar", test=packed)


def test_a_pack_that_was_not_finished_is_refused(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (packed / "manifest.json").unlink()
    assert len(open_dataset(packed).train) == 20  # shards of another program
    (packed / ".packing").mkdir()
    with pytest.raises(DataError, match=r"not whole.*manifest\.json"):
        open_dataset(packed)
    what = "is not there: the pack was not finished"
    assert verified(packed, capsys)["corrupt"] == [
        [str(packed / "manifest.json"), what]
    ]


def test_verify_looks_at_everything_beside_a_damaged_shard(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, altered = packed / "train-000000.tar", packed / "val-000000.tar"
    with tarfile.open(broken) as archive:
        kept = archive.getmembers()[:-1]  # the label of the last sample is lost
        contents = [archive.extractfile(member) for member in kept]
        with tarfile.open(packed / "new", "w", format=tarfile.USTAR_FORMAT) as new:
            for member, content in zip(kept, contents, strict=True):
                new.addfile(member, content)
    (packed / "new").replace(broken)
    data = bytearray(altered.read_bytes())
    data[data.find(b"\xff\xda", 512) + 200] ^= 0x10
    altered.write_bytes(data)
    with pytest.raises(DataError, match="has no label member"):
        open_dataset(packed)
    found = verified(packed, capsys)
    reasons: dict[str, list[str]] = {}
    for name, reason in found["corrupt"]:
        reasons.setdefault(name, []).append(reason)
    assert "has no label member" in reasons[str(broken)][0]
    differs = "differs from its SHA-256 in SHA256SUMS"
    assert reasons[str(broken)][1:] == reasons[str(altered)] == [differs]
    assert found["images"]["val"] == 6
    assert 0 < found["images"]["train"] < 20


def test_packing_again_mends_damage_that_keeps_the_size(packed: Path) -> None:
    whole = files(packed)
    with open(packed / "train-000001.tar", "r+b") as shard:
        shard.seek(2000)
        shard.write(b"damage")
    source = open_dataset(packed.parent / "set")
    made: list[str] = []
    pack(source, packed, shard_bytes=12_000, done=made.append)
    assert made == ["train-000001.tar"]
    assert files(packed) == whole


def test_one_process_packs_into_a_folder(packed: Path) -> None:
    source = open_dataset(packed.parent / "set")
    theirs = packed / ".train-000000.tar.tmp"
    theirs.write_bytes(b"half a shard")
    words = [sys.executable, "-c", PROGRAM, str(packed / ".packing")]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        other.stdout.readline()
        with pytest.raises(ConfigError, match=f"being packed by process {other.pid}"):
            pack(source, packed, shard_bytes=12_000)
        assert theirs.exists()
        other.communicate()
    pack(source, packed, shard_bytes=12_000)
    assert not theirs.exists()
    assert not (packed / ".packing").exists()
