#!/usr/bin/env bash
# Server and client as two processes with a TCP link, as they would run on two machines.
#
#     examples/two_processes.sh [BUDGET]
#
# On two machines: run the `serve` line on one with --address tcp://0.0.0.0:4711, and the `join` line
# on the other with tcp://HOST:4711, both with certificates or a secret (docs/deploy.md). Both take the
# same options for what both must agree on.
set -euo pipefail
budget=${1:-nominal=0.2}
folder=$(mktemp -d)

splitlab serve --plugin adc --output "$folder/server" >"$folder/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT

# The server prints where it listens: a free port of the loopback address.
for _ in $(seq 600); do
    address=$(grep -o 'tcp://[^ ]*' "$folder/server.log" || true)
    [ -n "$address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$folder/server.log"; exit 1; }
    sleep 0.1
done

splitlab join "$address" --plugin adc --budget "$budget" --output "$folder/client"
wait "$server"
cat "$folder/server.log"
