"""fastadv-transfer from the command line: what it says of the comparison of a protocol."""

from __future__ import annotations

import shlex
from pathlib import Path

from command_line import Caller, image_folder

from fastadv.models import create_model, save_model


def test_zhang2023_says_how_to_measure_the_source_on_its_own_data(
    call: Caller, tmp_path: Path
) -> None:
    """The command that is printed completes the comparison, and is then not repeated."""
    data, source = image_folder(tmp_path / "data"), tmp_path / "source.safetensors"
    model = create_model("resnet8_cifar", 2, seed=0)
    save_model(model, source, metadata={"resolution": 16})
    words = ["--source", source, "--dataset", data, "--results", tmp_path / "r"]
    words += [
        "--mode",
        "last_k_blocks",
        "--k",
        "0",
        "--protocol",
        "zhang2023",
        "--norm",
        "linf",
    ]
    words += [
        "--robust-eps",
        "8/255",
        "--robust-steps",
        "2",
        "--epochs",
        "1",
        "--batch-size",
        "8",
    ]
    words += ["--resolution", "16"]
    said = call("transfer", *words)
    assert said.code == 0
    start = "the comparison lacks the source on its own data: fastadv-eval "
    [line] = [each for each in said.err.splitlines() if each.startswith(start)]
    assert "--num-steps 2 --step-size 0.0235294 --results" in line
    command = line.removeprefix(start).replace("ITS_DATA", str(data))
    assert call("eval", *shlex.split(command), "--resolution", "16").code == 0
    assert start not in call("transfer", *words).err
