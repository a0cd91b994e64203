#!/usr/bin/env bash
# "I have this GPU for ten minutes": in the repository's root,
#   bash .ci/gpu/once.sh SECONDS [Experiment:name=value,name=value ...]
# checks that what matters is right, takes some times, then trains runs at paper scale, ONCE_SLOTS (3) at once, until the
# time is up. All that is needed to go on lies in $OUT at any moment: put the files of an earlier call into .gpu/back/.
# What the machine lacks travels in .gpu/: wheels/*.whl, and mnist/ with the four official files of digits. Where there
# is NVIDIA's multi-process service, the runs share the GPU through it; without it they take turns.
set -uo pipefail
began=$SECONDS limit=$1; shift
export OUT=${OUT:-/tmp/once_out} IPS_REPRO_OUT=${IPS_REPRO_OUT:-/tmp/once_results} IPS_REPRO_CACHE=${IPS_REPRO_CACHE:-$PWD/.gpu}
export PYTHONPATH=/tmp/once_packages:$PWD PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export IPS_REPRO_PROGRESS=lines CUBLAS_WORKSPACE_CONFIG=:4096:8
mkdir -p "$OUT" "$IPS_REPRO_OUT"
if compgen -G ".gpu/wheels/*.whl" >/dev/null && [ ! -d /tmp/once_packages ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/once_packages .gpu/wheels/*.whl || exit 9
fi
if [ -f .gpu/back/results.tgz ] && [ ! -d "$IPS_REPRO_OUT/results" ]; then python3 .ci/gpu/once.py restore .gpu/back; fi
mps=$(command -v nvidia-cuda-mps-control || ls /usr/local/nvidia/bin/nvidia-cuda-mps-control 2>/dev/null)
if [ -n "$mps" ]; then
  export CUDA_MPS_PIPE_DIRECTORY=/tmp/once_mps CUDA_MPS_LOG_DIRECTORY=/tmp/once_mps
  mkdir -p /tmp/once_mps && timeout 10 "$mps" -d
  if ! timeout 40 python3 -c "import torch; torch.zeros(1, device='cuda').item()"; then
    echo quit | timeout 5 "$mps"
    unset mps CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  fi
fi
python3 .ci/gpu/once.py go $((limit - (SECONDS - began))) "$@" 2>&1 | tee -a "$OUT/log.txt"
status=${PIPESTATUS[0]}
if [ -n "${mps:-}" ]; then echo quit | timeout 5 "$mps"; fi # nothing is left running on a lent machine
exit "$status"
