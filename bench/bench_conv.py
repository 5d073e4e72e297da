"""The 3x3 convolutions of a ResNet-18, forward and both gradients: ours against PyTorch's.

    python bench/bench_conv.py [--repeats 9]

At 224 px with 16 images and at 64 px with 64, channels_last float32 on the CPU
(`csrc/cpu/winograd.cpp`). Both must agree before they are timed.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved, ratio

from fastadv.kernels.conv import unsupported_reason

# Side of the image, batch; channels and side of the maps of its four stages.
NETWORKS = {(224, 16): 56, (64, 64): 16}
STAGES = ((64, 1), (128, 2), (256, 4), (512, 8))


def passes(x: Tensor, w: Tensor, g: Tensor) -> dict[str, list[Callable[[], Tensor]]]:
    """PyTorch's and ours, by the name of what they compute."""
    ours = torch.ops.fastadv
    backward = functools.partial(
        torch.ops.aten.convolution_backward,
        *(g, x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    )
    return {
        "forward": [
            lambda: F.conv2d(x, w, padding=1),
            lambda: ours.conv3x3(x, w, None, None, None, False, False),
        ],
        "images": [
            lambda: backward([True, False, False])[0],
            lambda: ours.conv3x3(g, w, None, None, None, False, True),
        ],
        "weights": [
            lambda: backward([False, True, False])[1],
            lambda: ours.conv3x3_weight(x, g),
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="conv")
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        made = torch.randn(shape, generator=generator)
        return made.contiguous(memory_format=torch.channels_last)

    results = Results(options.name)
    for (resolution, batch), largest in NETWORKS.items():
        for channels, stage in STAGES:
            side = largest // stage
            x, g = (drawn(batch, channels, side, side) for _ in range(2))
            w = drawn(channels, channels, 3, 3) / (3 * channels**0.5)
            if (reason := unsupported_reason(x, w)) is not None:
                sys.exit(reason)
            for what, (plain, ours) in passes(x, w, g).items():
                difference = ((plain() - ours()).norm() / plain().norm()).item()
                if not difference < 1e-5:
                    sys.exit(f"{what}: the two differ by {difference:.1e}")
                cases = {"torch": plain, "ours": ours}
                times = interleaved(cases, repeats=options.repeats)
                faster, low, high = ratio(times["torch"], times["ours"])
                results.add(
                    resolution=resolution,
                    batch=batch,
                    channels=channels,
                    side=side,
                    what=what,
                    ms={name: 1e3 * t.median for name, t in times.items()},
                    faster=faster,
                    faster_range=[round(low, 3), round(high, 3)],
                    repeats=options.repeats,
                )
                torch_ms, ours_ms = (1e3 * t.median for t in times.values())
                print(
                    f"{channels:4} channels {side:3} px {what:8}{torch_ms:8.2f} ms "
                    f"{ours_ms:8.2f} ms {faster:6.2f} x [{low:.2f}, {high:.2f}]"
                )
    results.write()


if __name__ == "__main__":
    main()
