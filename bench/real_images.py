"""Robust pretraining and transfer on real images, start to finish, into docs/real-images.md.

    python bench/real_images.py DATA_FOLDER [--out runs/real-images]

DATA_FOLDER holds tiny-imagenet-40.zip, cifar10-jpeg-12k.zip and trashnet6-128px.zip, each
with split/class/file inside. About a quarter of an hour on two cores, nothing else running.
The page has the commands, what they printed and how long they took; none of it is typed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fastadv.environment import provenance

PAGE = Path(__file__).parents[1] / "docs" / "real-images.md"
EPS = "1"
PRETRAIN = [
    *("--arch", "resnet18", "--resolution", "64", "--num-train", "2000"),
    *("--epochs", "10", "--schedule", "onecycle", "--augment", "crop_flip"),
    *("--val-size", "400", "--eval-every", "5", "--eval-images", "200"),
]
FULL = [
    "--mode",
    "full_network",
    "--num-train",
    "600",
    "--epochs",
    "10",
    "--lrs",
    "0.01",
]

INTRO = """# Real images: pretraining, attack, transfer

Written by `python bench/real_images.py DATA_FOLDER` in one run; every number below is what a
command printed. ResNet-18 at 64 px on 2,000 images of a 40-class Tiny ImageNet archive, once
standard and once adversarially (L2, eps 1, 3 steps), same budget and seed; then both
transferred to CIFAR-10 (JPEG re-encoding: not comparable with official CIFAR-10 numbers) and
TrashNet. A budget of two CPU cores: these show that the whole path works on real images and
how fast, not what a full training reaches.

"""


class Session:
    """Runs commands, keeping what they print and how long they take."""

    def __init__(self, data: Path, out: Path) -> None:
        self.data, self.out = data, out
        self.parts: list[str] = []

    def run(self, command: str, *arguments: str) -> str:
        """Run one of our commands; its stderr goes to progress.log."""
        program = Path(sys.executable).with_name(command)
        shown = " ".join([command, *arguments])
        shown = shown.replace(str(self.data), "DATA").replace(str(self.out), "OUT")
        print(f"$ {shown}", flush=True)
        began = time.monotonic()
        with open(self.out / "progress.log", "a") as log:
            done = subprocess.run(
                [str(program), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        seconds = time.monotonic() - began
        if done.returncode:
            raise SystemExit(f"{shown} exited {done.returncode}; see {log.name}")
        text = done.stdout.replace(str(self.data), "DATA").replace(str(self.out), "OUT")
        self.parts.append(f"```\n$ {shown}\n{text.rstrip()}\n```\n{seconds:.0f} s\n")
        print(f"  {seconds:.0f} s", flush=True)
        return done.stdout

    def training_table(self, name: str) -> str:
        """What the run's log says, epoch by epoch."""
        lines = (self.out / name / "log.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        rows = ["| epoch | clean | robust |", "|---|---|---|"]
        for event in events:
            if event["event"] in ("val", "test"):
                what = f"{event['epoch']}" if event["event"] == "val" else "test"
                robust = event.get("robust_acc")
                shown = "-" if robust is None else f"{100 * robust:.1f} %"
                rows.append(f"| {what} | {100 * event['clean_acc']:.1f} % | {shown} |")
        rate = events[-1]["images_per_s"]
        return "\n".join(rows) + f"\n\n{rate:.0f} training images per second.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/real-images"))
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    session = Session(options.data.resolve(), options.out.resolve())
    pretrain = str(session.data / "tiny-imagenet-40.zip")
    results = str(session.out / "results")
    parts = session.parts
    parts.append("## Pretraining\n")
    for name, eps in (("standard", "0"), ("robust", EPS)):
        run = str(session.out / name)
        session.run(
            "fastadv-train", "--data", pretrain, "--eps", eps, *PRETRAIN, "--out", run
        )
        parts.append(session.training_table(name))
    parts.append("## Under attack\n")
    for name in ("standard", "robust"):
        run = str(session.out / name)
        attack = [
            "--norm",
            "l2",
            "--eps",
            EPS,
            "--num-steps",
            "20",
            "--num-images",
            "400",
        ]
        session.run("fastadv-eval", "--checkpoint", run, "--data", pretrain, *attack)
    parts.append("## Transfer\n")
    for archive in ("cifar10-jpeg-12k.zip", "trashnet6-128px.zip"):
        for name in ("standard", "robust"):
            source = ["--source", str(session.out / name), "--results", results]
            source += ["--dataset", str(session.data / archive)]
            session.run("fastadv-transfer", *source, "--seeds", "0", "1", "2")
            session.run("fastadv-transfer", *source, *FULL, "--seeds", "0", "1")
    about = provenance() | {"load": os.getloadavg()[0]}
    facts = ", ".join(
        f"{key} {value}" for key, value in about.items() if value is not None
    )
    # Each command prints the whole table so far; the last one is the result.
    PAGE.write_text(INTRO + f"Made with {facts}.\n\n" + "\n".join(parts))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
