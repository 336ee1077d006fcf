#!/usr/bin/env bash
# Run the suite as other machines would compute it, and with the oldest and the newest libraries.
#
#     tests/everywhere.sh PYTHON [VARIANT...]      (an interpreter that has the test extra)
#
# Variants; all by default:
#     plain      as `make test`, and the tests marked long
#     baseline   torch's own loops without AVX
#     sse        matrix products without AVX
#     one        one thread
#     four       four threads
#     oldest     the oldest direct dependencies that pyproject.toml allows, on Python 3.11
#     newest     Python 3.13 with the newest dependencies; skipped where there is no python3.13
#
# WORKERS says how many tests run at once: a number, or auto. What a variant printed is kept in
# build/everywhere/VARIANT.log. The last two make an environment each, in build/everywhere too.
set -uo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
python=$(realpath --no-symlinks "$1")
shift
[ $# -ge 1 ] || set -- plain baseline sse one four oldest newest
cd "$(dirname "$0")/.."
work=$PWD/build/everywhere
mkdir -p "$work"

# Print the first of these interpreters that is of this version.
interpreter() {
    local version=$1 candidate
    shift
    for candidate in "$@" "python$version" python3; do
        if "$candidate" -c "import sys; sys.exit(sys.version_info[:2] != (${version/./, }))" \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python 2>/dev/null | tail -n 1
}

# Make an environment anew: its name, an interpreter, and uv's options.
environment() {
    local name=$1 base=$2
    shift 2
    [ -x "$work/uv/bin/uv" ] || {
        "$python" -m venv "$work/uv" && "$work/uv/bin/python" -m pip install --quiet uv
    } || return 1
    rm -rf "${work:?}/$name"
    "$work/uv/bin/uv" venv --quiet --python "$base" "$work/$name" &&
        "$work/uv/bin/uv" pip install --quiet --python "$work/$name/bin/python" "$@" \
            --editable '.[test]'
}

# Run the suite: an interpreter, then variables as NAME=VALUE.
suite() {
    local interpreter=$1
    shift
    env "$@" "$interpreter" -m pytest -p no:cacheprovider -q -n "${WORKERS:-auto}" --dist worksteal
}

variant() {
    local base
    case $1 in
        plain) suite "$python" ;;
        baseline) suite "$python" ATEN_CPU_CAPABILITY=default ;;
        sse) suite "$python" MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 ;;
        one) suite "$python" SPLITLAB_TEST_THREADS=1 ;;
        four) suite "$python" SPLITLAB_TEST_THREADS=4 ;;
        oldest)
            base=$(interpreter 3.11 "$python")
            [ -n "$base" ] || { echo "skipped: there is no python3.11"; return 77; }
            environment oldest "$base" --resolution lowest-direct &&
                suite "$work/oldest/bin/python"
            ;;
        newest)
            base=$(interpreter 3.13)
            [ -n "$base" ] || { echo "skipped: there is no python3.13"; return 77; }
            environment newest "$base" --upgrade && suite "$work/newest/bin/python"
            ;;
        *) echo "unknown variant '$1'; known: plain baseline sse one four oldest newest"; return 2 ;;
    esac
}

failed=()
skipped=()
for name in "$@"; do
    log=$work/$(tr -c '[:alnum:]\n' '_' <<<"$name").log
    SECONDS=0
    variant "$name" >"$log" 2>&1
    status=$?
    [ $status -eq 0 ] || { [ $status -eq 77 ] && skipped+=("$name"); } || failed+=("$name")
    printf '%-9s %3d:%02d  %s\n' "$name" $((SECONDS / 60)) $((SECONDS % 60)) "$(tail -n 1 "$log")"
    [ $status -eq 0 ] || [ $status -eq 77 ] || grep -E '^(FAILED|ERROR) ' "$log" | sed 's/^/    /'
done
echo "$(($# - ${#failed[@]} - ${#skipped[@]})) of $# variants passed," \
    "failed: ${failed[*]:-none}, skipped: ${skipped[*]:-none}"
[ ${#failed[@]} -eq 0 ]
