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
here=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$here/.venv/bin/python" ] || PYTHON=$here/.venv/bin/python
fi
missing=$("$PYTHON" -c 'from importlib.util import find_spec
needs = ("torch", "timm", "pluggy", "safetensors", "pyarrow")
print(*(name for name in needs if find_spec(name) is None))')
if [ -n "$missing" ]; then
    echo "science: $PYTHON lacks: $missing; name one that has them: PYTHON=… benchmarks/science.sh" >&2
    exit 2
fi
# The checkout is the package splitlab, whatever its folder is called and whether it is installed.
paths=$(mktemp -d)
trap 'rm -rf "$paths"' EXIT
ln -s "$here" "$paths/splitlab"
# Workers of a study find it, too.
PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$here/benchmarks/science.py" "$@"
