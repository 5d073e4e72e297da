"""Opening a ResNet-50 of 102 MB beside a plain load, and what it reads.

Run: python bench/bench_opening.py [--repeats 15]

The plain load builds the network of torchvision and fills it by `load_state_dict`, from
torch.load or safetensors. `load_model` also finds the network in the file, checks its
values and states its normalisation; `open_source` hashes the file besides.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from harness import Results, interleaved, ratio
from torchvision.models import resnet50

from fastadv.models import load_model
from fastadv.models.source import open_source


def _bytes_read() -> int:
    """Return the bytes that this process has read from files so far (Linux)."""
    return int(Path("/proc/self/io").read_text().split()[1])


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    logging.getLogger("fastadv").setLevel(logging.ERROR)  # normalisation is assumed
    results = Results("opening")
    with tempfile.TemporaryDirectory() as folder:
        state = resnet50().state_dict()
        torch.save(state, f"{folder}/m.pt")
        safetensors.torch.save_file(state, f"{folder}/m.safetensors")
        for ending, read in (("pt", torch.load), ("safetensors", None)):
            file = f"{folder}/m.{ending}"

            def plain(file: str = file, torch_file: bool = read is not None) -> None:
                net = resnet50()
                found = (
                    torch.load(file, weights_only=True)
                    if torch_file
                    else safetensors.torch.load_file(file)
                )
                net.load_state_dict(found)

            cases: dict[str, Callable[[], object]] = {
                "plain": plain,
                "load_model": lambda file=file: load_model(file, arch="resnet50"),
                "open_source": lambda file=file: open_source(file, arch="resnet50"),
            }
            read_by = {}
            for name, call in cases.items():
                call()
                before = _bytes_read()
                call()
                read_by[name] = _bytes_read() - before
            found = interleaved(cases, repeats=repeats)
            for name, timing in found.items():
                times, low, high = ratio(timing, found["plain"])
                print(
                    f".{ending} {name}: {1e3 * timing.median:.0f} ms, {times:.2f} of plain "
                    f"[{low:.2f}, {high:.2f}], {read_by[name] / 1e6:.0f} MB read"
                )
                results.add(
                    file=ending,
                    case=name,
                    median=timing.median,
                    of_plain=times,
                    low=low,
                    high=high,
                    bytes_read=read_by[name],
                )
    results.write()


if __name__ == "__main__":
    main()
