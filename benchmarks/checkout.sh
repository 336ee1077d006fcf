# Sourced by the scripts of this folder: finds an interpreter and lets it know this checkout.
#
# Sets here, PYTHON and PYTHONPATH. PYTHON names the interpreter: .venv's by default, or python3.
# Nothing is installed. The first argument is the script's name, the others are modules it needs.
script=$1
shift
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x "$here/.venv/bin/python" ] || PYTHON=$here/.venv/bin/python
fi
missing=$("$PYTHON" -c 'import sys
from importlib.util import find_spec
print(*(name for name in sys.argv[1:] if find_spec(name) is None))' "$@")
if [ -n "$missing" ]; then
    echo "$script: $PYTHON lacks: $missing; name one that has them: PYTHON=… benchmarks/$script.sh" >&2
    exit 2
fi
# The checkout is the package splitlab, whatever its folder is called and whether it is installed;
# processes that the script starts find it, too.
paths=$(mktemp -d)
trap 'rm -rf "$paths"' EXIT
ln -s "$here" "$paths/splitlab"
export PYTHONPATH=$paths${PYTHONPATH:+:$PYTHONPATH}
