#!/bin/sh
# What bulkhead costs on this machine, in release mode: request/response, connections, datagrams and bulk
# transfers against flannel alone, nanoseconds per packet, time added to CNI ADD. Needs root, and an idle
# machine for figures worth keeping. Under 6 minutes after the build.
#
#   deploy/bench.sh                a table of everything
#   deploy/bench.sh --quick        a look, under a minute
#   deploy/bench.sh --help         rounds, time per sample, IPv6, parts, samples as JSON
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "deploy/bench.sh needs root: it builds network namespaces and loads eBPF programs" >&2
    exit 1
fi

deploy/toolchain.sh
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
echo "== building"
cargo build --release -p bulkhead -p bulkhead-cni -p lab
exec "${CARGO_TARGET_DIR:-target}/release/lab" bench "$@"
