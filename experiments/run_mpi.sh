#!/usr/bin/env bash
# A run with the arguments of the FedPruning library's scripts, on MPI ranks; see run_mpi.py.
#   experiments/run_mpi.sh METHOD MODEL DATASET CLIENTS PER_ROUND ROUNDS EPOCHS DENSITY LR [--delta_T N] [--T_end N] ...
#   RANKS=5 (default: one more than the visible GPUs, else than the cores), PYTHON=... (default: .venv/bin/python)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
exec "$python" "$root/experiments/run_mpi.py" "$@"
