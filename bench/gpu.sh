#!/bin/bash
# The first minutes on a GPU: what is riskiest first, at most SECONDS_MAX (470) seconds in all.
# Every stage has a deadline and a process of its own; each finding is a JSON line as soon as
# it is known, so that a run that is cut leaves what it had.
#
#     bash bench/gpu.sh            needs PyTorch >= 2.11 with Triton, pytest and hypothesis; no
#                                  network, and nothing is installed. CUDA's nvcc is needed only
#                                  where kernels/fastadv_cuda.so is not brought along
#     DEVICE=cpu bash bench/gpu.sh rehearses it, small, where there is no GPU
#
# OUT (bench/results/gpu) receives: log, gpu.jsonl (all findings), attack_profile.txt,
# sanitizer.txt, ncu.txt, pytest.txt. `docs/gpu.md` says what to expect.
set -u
cd "$(dirname "$0")/.."
PY=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
OUT=$(realpath -m "${OUT:-bench/results/gpu}")
deadline=$((SECONDS + ${SECONDS_MAX:-470}))
mkdir -p "$OUT"
exec > >(tee "$OUT/log") 2>&1
rows=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 FASTADV_BENCH=$rows
[ -e .git ] || export FASTADV_COMMIT=${FASTADV_COMMIT:-unknown}
failed=0

keep() {  # what there is so far, where it comes back from
  cat "$rows"/*.jsonl > "$OUT/.new" 2>/dev/null && mv "$OUT/.new" "$OUT/gpu.jsonl"
  cp "$rows"/*.txt "$OUT"/ 2>/dev/null
}
(while sleep 5; do keep; done) &  # also while a stage is at work
keeper=$!
trap 'kill $keeper; keep; rm -rf "$rows"' EXIT

plain() { tr -d '"\\' <<< "$1"; }  # as it may stand in a JSON text
# run LIMIT COMMAND...: says what runs and how it went; the rest goes on where it fails.
run() {
  local limit=$1 began=$SECONDS left=$((deadline - SECONDS)); shift
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -lt 10 ]; then
    echo "== left out, $left s are left: $*"
    printf '{"left_out": "%s"}\n' "$(plain "$*")" >> "$rows/gpu_stages.jsonl"
    return
  fi
  echo "== $* (at most $limit s)"
  timeout -k 5 "$limit" "$@"; local code=$?
  [ $code = 0 ] || failed=1
  printf '{"ran": "%s", "code": %d, "seconds": %d}\n' \
    "$(plain "$*")" "$code" $((SECONDS - began)) >> "$rows/gpu_stages.jsonl"
  echo "== code $code, $((SECONDS - began)) s; $((deadline - SECONDS)) s are left"
  keep
}
first() { run "$1" $PY bench/gpu_first.py "$2" --seconds $(($1 - 10)) --device "$DEVICE" "${@:3}"; }
tests() { run "$1" $PY -m pytest -q -p no:cacheprovider --durations 8 "${@:2}"; }
has() { command -v "$1" >/dev/null || { echo "== $1 is not here"; false; }; }

# The library, if it was not brought along or does not load here.
if [ "$DEVICE" = cuda ] && ! $PY -c "import sys
from fastadv.kernels import _cuda
reason = _cuda.unavailable_reason()
print('fastadv_cuda.so:', reason or 'loads')
sys.exit(reason is not None)"; then
  nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
  architecture=$($PY -c "import torch; print('%d%d' % torch.cuda.get_device_capability())")
  run 60 "$nvcc" -O3 -std=c++17 -gencode "arch=compute_$architecture,code=sm_$architecture" \
    -DFA_ISA=fa_cuda "-DFC_ARCHITECTURES=\"$architecture\"" -Xcompiler -fPIC,-fvisibility=hidden \
    -cudart static -shared -t 4 csrc/cuda/*.cu -o kernels/fastadv_cuda.so
fi

if [ "$DEVICE" = cuda ]; then
  first 25 facts
  first 70 clusters       # is the single pass right
  first 85 step_times     # which path is the default; the share of copy
  first 120 attacks       # the headline; what Inductor would add
  tests 60 tests/attacks/test_recording.py tests/test_device.py   # a failed capture, TF32
  has compute-sanitizer && run 60 compute-sanitizer --tool memcheck \
    --kernel-regex kns=fa_cuda --log-file "$rows/sanitizer.txt" \
    $PY bench/gpu_first.py launches --seconds 40
  has ncu && run 45 ncu --clock-control none --csv --log-file "$rows/ncu.txt" \
    -k regex:"cluster_kernel|sums_kernel|step_kernel" -c 8 --section SpeedOfLight \
    --section MemoryWorkloadAnalysis --section WarpStateStats \
    $PY bench/gpu_first.py launches --seconds 30
  first 40 peers          # the ratio to report
  # The contract: the CUDA kernels first, Triton's 650 compilations in many processes.
  workers=$($PY -c "import xdist; print('-n 12')" 2>/dev/null)
  # shellcheck disable=SC2086
  tests 120 -m gpu $workers --maxfail 20 tests/kernels tests/attacks > "$rows/pytest.txt" 2>&1
  tail -5 "$rows/pytest.txt"
  has compute-sanitizer && run 60 compute-sanitizer --tool synccheck \
    --kernel-regex kns=fa_cuda $PY bench/gpu_first.py launches --seconds 40
  # With time left: the step against torch.compile, and other files of one subject each.
  run 90 $PY bench/bench_pgd_step.py --device cuda --name gpu_pgd_step --batches 64 256 \
    --compile-batches 64
  run 60 $PY bench/bench_stem.py --device cuda --name gpu_stem_bf16 --batch 256 --precision bf16
else
  for stage in facts clusters step_times attacks peers launches; do
    first 150 $stage --small
  done
  tests 150 tests/attacks/test_recording.py tests/kernels/test_kernel_rounds.py
  run 150 $PY bench/bench_pgd_step.py --name gpu_pgd_step --batches 2 --repeats 1 \
    --compile-batches
fi
keep
echo "== $((SECONDS)) s; findings: $OUT/gpu.jsonl"
exit $failed
