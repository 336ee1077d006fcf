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
. "$(dirname "$0")/checkout.sh" gpu torch timm pytest
"$PYTHON" "$here/benchmarks/gpu.py" "$@"
