#!/bin/bash
# Everything that waits for a GPU, meant to take under nine minutes: builds the CUDA kernels, runs the
# tests that need a device, then the benchmarks, and leaves JSON lines in bench/results (or
# $OUT) to commit.
#
#     bash bench/gpu.sh            needs CUDA's nvcc, CMake, PyTorch >= 2.11 with Triton, pytest,
#                                  hypothesis; no network, and nothing is installed
#     DEVICE=cpu bash bench/gpu.sh rehearses it, small, where there is no GPU
set -u
cd "$(dirname "$0")/.."
PY=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-bench/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
started=$SECONDS
failed=0

# run LIMIT COMMAND...: says what runs and how it went; the rest goes on where it fails.
run() {
  local limit=$1 began=$SECONDS; shift
  echo "== $* (at most $limit s)"
  timeout "$limit" "$@"; local code=$?
  [ $code = 0 ] || { failed=1; echo "== FAILED with $code: $*"; }
  echo "== $((SECONDS - began)) s, $((SECONDS - started)) s in all"
}

build=$(mktemp -d)
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
architecture=90
[ "$DEVICE" = cuda ] && architecture=$($PY -c "import torch
print('%d%d' % torch.cuda.get_device_capability())")
run 120 cmake -S . -B "$build" -DFASTADV_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" \
  -DFASTADV_CUDA_ARCHITECTURES="$architecture"
run 180 cmake --build "$build" -j"$(nproc)"
for library in "$build"/*.so; do mv "$library" kernels/; done
rm -rf "$build"

if [ "$DEVICE" = cuda ]; then
  run 240 $PY -m pytest -q -m gpu --maxfail=20 tests/kernels tests/attacks \
    -p no:cacheprovider
  batches="8 16 64 256" attack="--batch 256 --arch resnet50" stem="--batch 256"
else
  batches="8" attack="--batch 2 --arch resnet18 --repeats 1" stem="--batch 2"
fi
bench() { run 120 $PY bench/"$1".py --device "$DEVICE" --name "$2" "${@:3}"; }
bench bench_pgd_step gpu_pgd_step --batches $batches
# The same again with Triton, its launches tuned on this device first.
export FASTADV_TUNE=1 FASTADV_BACKEND=triton
[ "$DEVICE" = cuda ] && bench bench_pgd_step gpu_pgd_step_triton --batches 64
unset FASTADV_TUNE FASTADV_BACKEND
bench bench_stem gpu_stem_fp32 $stem
bench bench_stem gpu_stem_bf16 $stem --precision bf16
bench bench_attack gpu_attack $attack --precision bf16

if [ "$OUT" != bench/results ]; then
  mkdir -p "$OUT"
  cat bench/results/gpu_*.jsonl > "$OUT/gpu.jsonl"
fi
echo "== $((SECONDS - started)) s; results: bench/results/gpu_*.jsonl"
exit $failed
