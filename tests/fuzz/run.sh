#!/usr/bin/env bash
# Fuzzes the parsers for a bounded time, with libFuzzer and rustup's stable compiler.
#
#   tests/fuzz/run.sh SECONDS [TARGET...]     each target (default: all of targets/) runs SECONDS
#
# A run starts from the seeds in corpus/TARGET, which it also replays, and keeps what it finds in a
# temporary directory ($BULKHEAD_FUZZ_DIR to choose and keep one). A crash, a hang or an input that eats
# memory ends the run with status 1 and says where the input lies: add it to corpus/TARGET with a test.
set -euo pipefail

usage() {
    echo "usage: tests/fuzz/run.sh SECONDS [TARGET...]; targets: ${targets[*]}" >&2
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
targets=()
for source in "$here"/targets/*.rs; do targets+=("$(basename "$source" .rs)"); done
[[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || usage
seconds=$1
shift
for target in "$@"; do [[ -f "$here/targets/$target.rs" ]] || usage; done
(($# == 0)) || targets=("$@")

export PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$here/../../target}/fuzz"

# What cargo-fuzz passes, less the address sanitizer, which needs nightly: coverage counters and compared
# values for libFuzzer, debug assertions and overflow checks as the oracle. An explicit target keeps the
# flags away from build scripts and macros; `fuzzing` makes enforcer/build.rs leave the programs out.
instrumented=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0
    -Ccodegen-units=1
    -Cdebug-assertions
    -Coverflow-checks
    --cfg=fuzzing
)
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
echo "fuzz: building ${targets[*]}"
(cd "$here" && env -u CARGO_ENCODED_RUSTFLAGS RUSTFLAGS="${instrumented[*]}" \
    cargo build --locked --quiet --target "$host" "${bins[@]}")

work=${BULKHEAD_FUZZ_DIR:-}
if [[ -z "$work" ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi

for target in "${targets[@]}"; do
    finds=$work/$target/corpus artifacts=$work/$target/artifacts log=$work/$target/log
    mkdir -p "$finds" "$artifacts"
    options=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1
        -artifact_prefix="$artifacts/")
    [[ ! -f "$here/$target.dict" ]] || options+=(-dict="$here/$target.dict")
    if ! "$CARGO_TARGET_DIR/$host/debug/$target" "${options[@]}" "$finds" "$here/corpus/$target" \
        >"$log" 2>&1 </dev/null; then
        trap - EXIT
        tail -n 40 "$log" >&2
        echo "fuzz: $target FAILED; log and input are under $work/$target" >&2
        exit 1
    fi
    # "#1195520 DONE cov: 523 ft: 1200 corp: 211/9Kb ...": edges, features, inputs kept.
    summary=$(sed -n 's/^#[0-9]*[[:space:]]*DONE[[:space:]]*\(cov: .*corp: [^ ]*\).*/\1/p' "$log")
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    [[ "$summary" =~ ^cov:\ [1-9] ]] || {
        echo "fuzz: $target covered nothing: is it instrumented?" >&2
        exit 1
    }
    echo "fuzz: $target: $runs executions in $seconds s, no crash, $summary"
done
