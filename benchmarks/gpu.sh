#!/usr/bin/env bash
# Every check and figure that needs a GPU, in under eight minutes, in one Markdown file.
#
#     benchmarks/gpu.sh                                 docs/gpu.md, or $OUTPUT
#     benchmarks/gpu.sh --device cpu --output x.md      a dry run: the same path at small sizes
#     benchmarks/gpu.sh --help                          the other options
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
print(*(name for name in ("torch", "timm", "pytest") if find_spec(name) is None))')
if [ -n "$missing" ]; then
    echo "gpu: $PYTHON lacks: $missing; name one that has them: PYTHON=… benchmarks/gpu.sh" >&2
    exit 2
fi
# The checkout is the package splitlab, whatever its folder is called and whether it is installed.
paths=$(mktemp -d)
trap 'rm -rf "$paths"' EXIT
ln -s "$here" "$paths/splitlab"
PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH} "$PYTHON" "$here/benchmarks/gpu.py" "$@"
