#!/usr/bin/env bash
# What to run whenever a CUDA machine can be had: build without network, GPU tests, compute-sanitizer, benchmarks.
#
#     benchmarks/gpu_check.sh [FOLDER FOR RESULTS, default benchmarks/results]
#
# Needs torch with CUDA, nvcc, pybind11, scikit-build-core, cmake >= 3.29, ninja, pytest and hypothesis, all installed
# already. Goes on after a failure, so that one visit shows everything; exits 1 if anything failed.
set -uo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
results="$(mkdir -p "${1:-$root/benchmarks/results}" && cd "${1:-$root/benchmarks/results}" && pwd)"
site="$(mktemp -d)"
trap 'rm -rf "$site"' EXIT
cd "$root"
failed=()

step() { # step NAME COMMAND...
  local name="$1" start=$SECONDS
  shift
  echo "::: $name"
  if "$@"; then echo "::: $name: ok, $((SECONDS - start)) s"; else
    echo "::: $name: FAILED, $((SECONDS - start)) s"
    failed+=("$name")
  fi
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
# --target keeps the machine's own packages as they are; MODCUT_CUDA=ON makes a missing nvcc an error, not a CPU build.
step "build" python3 -m pip install -q --no-build-isolation --no-deps --target "$site" -Ccmake.define.MODCUT_CUDA=ON .
export PYTHONPATH="$site:$root/benchmarks"
step "info" python3 -m modcut
# From the tests' own folder: python/ must not hide the installed package.
step "GPU tests" python3 -m pytest -q -p no:cacheprovider -m gpu --rootdir "$root" "$root/tests/test_gpu.py"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    step "compute-sanitizer $tool" compute-sanitizer --tool "$tool" --error-exitcode 1 \
      python3 -m pytest -q -p no:cacheprovider -m gpu -k "strengths or strided or (batched and 33)" --rootdir "$root" "$root/tests/test_gpu.py"
  done
else
  echo "::: compute-sanitizer: not on the PATH"
  failed+=("compute-sanitizer is missing")
fi
step "benchmark of the strengths" python3 benchmarks/bench_gpu_degree.py --out "$results/gpu_degree.json"
step "benchmark of the trees" python3 benchmarks/bench_gpu_cuts.py --out "$results/gpu_cuts.json"
step "benchmark of the loss" python3 benchmarks/bench_gpu_loss.py --out "$results/gpu_loss.json"

if ((${#failed[@]})); then
  printf '::: failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "::: everything passed; commit $results"
