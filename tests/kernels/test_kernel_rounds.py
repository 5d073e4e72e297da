"""L2 steps whose clusters of blocks take several samples each, one after the other.

A second round waits for the second phase of every barrier and reads memory that was filled
while the first sample was being moved.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    HALF_TRAINING,
    ROUNDS,
    ROUNDS_DTYPES,
    Dtypes,
    check_rounds,
    make_step,
)

from fastadv import kernels
from fastadv.kernels import _cuda


def test_what_repeats_to_the_bit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check finds a step that depends on how often it ran."""
    with kernels.use_backend("reference"):
        check_rounds((3, 3, 8, 8), HALF_TRAINING, "channels_last", "cpu", repeats=3)
        runs = []
        run = type(make_step("l2", (1, 3, 8, 8))).run

        def drifting(step):
            runs.append(1)
            found = run(step)
            if len(runs) == 4:
                step.z[0, 0, 0, 7] += 0.25
            return found

        monkeypatch.setattr("kernel_cases.StepCase.run", drifting)
        with pytest.raises(AssertionError, match="turn 2: z differs"):
            check_rounds((3, 3, 8, 8), HALF_TRAINING, "channels_last", "cpu", repeats=3)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or _cuda.unavailable_reason() is not None,
    reason="needs a CUDA device and fastadv_cuda.so",
)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtypes", ROUNDS_DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "size"), ROUNDS)
def test_many_rounds_on_a_gpu(
    shape: tuple[int, ...], size: int, dtypes: Dtypes, layout: str
) -> None:
    with kernels.use_backend("cuda"):
        if dtypes is HALF_TRAINING and torch.cuda.get_device_capability()[0] >= 9:
            step = make_step("l2", shape, dtypes, layout, "cuda")
            assert _cuda.cluster_size(step) == size
        check_rounds(shape, dtypes, layout, "cuda")
