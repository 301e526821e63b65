#!/usr/bin/env bash
# Everything that needs a CUDA device, within ten minutes: the kernels' tests, the convolution, the whole model, the
# product with packed weights, and lightning attention.
# All kernels are compiled first, in parallel: one after another they would take longer than what is measured.
#
#     benchmarks/gpu.sh [FOLDER]            by default benchmarks/results/gpu
#
# Needs torch with CUDA, triton, numpy, rich and typer. Without matplotlib the plots are left out, without pytest,
# pytest-timeout and pytest-xdist the tests, which is said. Each part has a time limit of its own, and the later ones run
# though an earlier one fails; the exit status is the number of parts that failed.
# PYTHON names another interpreter, COMMIT what is measured where this is no git checkout.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
unset TRITON_INTERPRET
failed=()

part() { # name, seconds, command ...
    local name=$1 seconds=$2 status
    shift 2
    echo "== $name (at most $seconds s): $*"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$out/$name.log"
    status=${PIPESTATUS[0]}
    if [ "$status" -ne 0 ]; then
        echo "== $name FAILED with status $status"
        failed+=("$name")
    fi
}

if ! "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "torch sees no CUDA device")'; then
    exit 1
fi

part compile 100 "$python" benchmarks/warm_up.py --device cuda
part doctor 40 "$python" -c 'from hyenadna.cli.doctor import doctor; doctor()'
if "$python" -c 'import pytest, pytest_timeout, xdist' 2>/dev/null; then
    # not the whole folder, since other tests import packages that this machine may lack
    part tests 110 "$python" -m pytest -n 8 tests/triton
else
    echo "== tests are left out: pytest, pytest-timeout or pytest-xdist is not installed"
fi
part fft_conv 150 "$python" benchmarks/fft_conv.py --device cuda -o "$out/fft_conv.json"
part model 100 "$python" benchmarks/gpu_model.py --device cuda -o "$out/model.json"
part packed_matmul 50 "$python" benchmarks/packed_matmul.py --device cuda -o "$out/packed_matmul.json"
part lightning_attention 40 "$python" benchmarks/lightning_attention.py --device cuda -o "$out/lightning_attention.json"

echo "== results are in $out; failed: ${failed[*]:-none}"
exit "${#failed[@]}"
