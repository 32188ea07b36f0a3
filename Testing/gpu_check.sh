#!/usr/bin/env bash
# Everything that needs a GPU, within five minutes: the tests marked `gpu`, and the table of speed.
#
#   Testing/gpu_check.sh [WHEELS] [OUT]
#
# WHEELS: a folder with wheels of what is missing (monai, einops, segment-anything; SimpleITK is not needed), for a
# machine without a network. PyTorch with CUDA and pytest must be there. OUT: where the table goes (speed-gpu.md).
set -u -o pipefail
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python3}
if [ -n "${1:-}" ]; then
    site=$(mktemp -d)
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$1"/*.whl || exit 2
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
"$PYTHON" -c 'import torch; assert torch.cuda.is_available(), "PyTorch finds no GPU"' || exit 2
status=0
together=$("$PYTHON" -c 'import xdist; print("-n 4")' 2>/dev/null) # several small tests share the card
# shellcheck disable=SC2086
"$PYTHON" -m pytest -q -p no:cacheprovider $together -m "not slow" Testing/Library/test_gpu.py \
    Testing/Library/sam/test_attention_triton.py Testing/Library/networks/test_scan_triton.py 2>&1 | tail -n 40 || status=1
"$PYTHON" -m FewShotSegLib benchmark speed --device cuda --out "${2:-speed-gpu}" || status=1
exit $status
