#!/usr/bin/env bash
# Build the wheel, install it with all it asks for into an empty environment elsewhere, use it there.
#
#     tests/check_wheel.sh PYTHON      (an interpreter that has the package `build`)
set -euo pipefail
python=$(realpath --no-symlinks "$1")
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy, so that nothing of an earlier build slips into the wheel or stays in the checkout.
mkdir "$work/source" "$work/elsewhere"
cd "$checkout"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work/source"
cd "$work/source"
"$python" -m build --wheel --outdir "$work/dist" . >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }

cd "$work/elsewhere"
"$python" -m venv env
env/bin/pip install --quiet --no-compile "$work"/dist/*.whl  # it runs little of what it installs
env/bin/splitlab plugins
env/bin/splitlab run --plugin adc --budget steps=2 --transport tcp --output run
test -s run/summary.json
env/bin/splitlab report run --html page.html
grep --quiet '<table' page.html
echo "the wheel works: $(basename "$work"/dist/*.whl)"
