#!/bin/sh
# A small shop on two flannel-shaped nodes of this one machine: who reaches whom before and after its
# policies, and what the flow log says about the blocked attempts.
#
#   deploy/demo.sh          show and clean up
#   deploy/demo.sh --keep   leave it running and say how to look around
set -eu
cd "$(dirname "$0")/.."

if [ "$(id -u)" -ne 0 ]; then
    echo "deploy/demo.sh needs root: it builds network namespaces and loads eBPF programs" >&2
    exit 1
fi

deploy/toolchain.sh
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
echo "== building"
cargo build -p bulkhead -p bulkhead-cni -p lab
exec "${CARGO_TARGET_DIR:-target}/debug/lab" demo \
    --manifests deploy/demo/cluster --policies deploy/demo/policies "$@"
