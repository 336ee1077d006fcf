#!/usr/bin/env bash
# The studies of ADC's paper in its own regime, on one GPU, in slices of at most ten minutes.
#
#     benchmarks/science.sh --data FOLDER --weights FILE --output OUT          a slice of nine minutes
#     benchmarks/science.sh … --from OUT.tar                                   the next, on any machine
#     benchmarks/science.sh --help                                             the other options
#
# PYTHON names the interpreter: one that has torch and timm; .venv's by default, or python3. Nothing
# is installed or downloaded, and splitlab is this checkout.
set -euo pipefail
. "$(dirname "$0")/checkout.sh" science torch timm pluggy safetensors pyarrow
"$PYTHON" "$here/benchmarks/science.py" "$@"
