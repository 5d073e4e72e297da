"""The input gradient of ResNet's stem, plain and space-to-depth.

    python bench/bench_stem.py [--device cuda] [--batch 64] [--precision bf16]

7x7, stride 2, 3 to 64 channels at 224 px, channels_last; `models/quick_convs.py` has the
second form. Both must agree before they are timed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from harness import Results, interleaved, ratio

from fastadv.models.quick_convs import input_gradient, pack_weight

PADDING, SIDE = 3, 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="stem")
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=generator).to(device, dtype)
        return made.contiguous(memory_format=torch.channels_last)

    weight = drawn(64, 3, 7, 7)
    g = drawn(options.batch, 64, SIDE // 2, SIDE // 2)
    x = drawn(options.batch, 3, SIDE, SIDE)
    packed = pack_weight(weight, PADDING)

    def plain() -> torch.Tensor:
        only_input = [True, False, False]
        found, _, _ = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            [2, 2],
            [PADDING] * 2,
            [1, 1],
            False,
            [0, 0],
            1,
            only_input,
        )
        return found

    def cells() -> torch.Tensor:
        return input_gradient(g, packed, PADDING, x.shape)

    difference = (plain() - cells()).float().norm() / plain().float().norm()
    bound = 2**-7 if options.precision == "bf16" else 1e-3  # tf32 on CUDA
    if not difference < bound:
        sys.exit(f"the two differ by {difference:.1e}")
    cases = {"plain": plain, "space_to_depth": cells}
    times = interleaved(cases, repeats=options.repeats, warmup=3, device=device)
    faster, low, high = ratio(times["plain"], times["space_to_depth"])
    results = Results(options.name)
    results.add(
        device=options.device,
        precision=options.precision,
        batch=options.batch,
        ms={name: 1e3 * t.median for name, t in times.items()},
        difference=difference.item(),
        space_to_depth_faster=faster,
        space_to_depth_faster_range=[round(low, 3), round(high, 3)],
    )
    print(
        f"plain {1e3 * times['plain'].median:.2f} ms, space-to-depth "
        f"{1e3 * times['space_to_depth'].median:.2f} ms: {faster:.2f} x "
        f"[{low:.2f}, {high:.2f}]"
    )
    results.write()


if __name__ == "__main__":
    main()
