#!/usr/bin/env bash
# The whole gate, the same at home and in CI, as root on a machine with nothing but rustup's stable
# toolchain: installs what is missing, checks, builds, tests with real packets, and fuzzes for a moment.
# Stops at the first step that fails and names it. On 2 cores from nothing: about half an hour.
#
#   BULKHEAD_FUZZ_SECONDS   per fuzz target, default 10
#   RUST_TEST_THREADS       tests at once, default 2: each lab is several nodes, agents and probes
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PATH="${CARGO_HOME:-${HOME:=/root}/.cargo}/bin:/usr/sbin:/sbin:$PATH" HOME
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-2}" RUST_BACKTRACE="${RUST_BACKTRACE:-1}"
# A fresh clone is built once: incremental state would only cost time and disk.
[[ "${CI:-}" != true ]] || export CARGO_INCREMENTAL=0
# The lab finds the binaries beside its own tests; another target directory is fine, another target is not.
unset CARGO_BUILD_TARGET
target=${CARGO_TARGET_DIR:-target}

current="start" times=()
step() {
    current=$1
    shift
    printf '\n=== %s\n' "$current"
    local started=$SECONDS
    "$@"
    times+=("$(printf '%5d s  %s' $((SECONDS - started)) "$current")")
}

# What a lab could leave on this machine: named namespaces, links, mounts, pins, agents.
residue() {
    ip netns list | sed 's/ .*//; s/^/namespace /'
    ip -o link | sed 's/^[0-9]*: \([^:@]*\).*/link \1/'
    findmnt -rn -o TARGET | sed 's/^/mount /'
    find /sys/fs/bpf -mindepth 1 -maxdepth 1 -printf 'pin %p\n'
    local name # one at a time: pgrep takes no pattern longer than a process name
    for name in bulkhead bulkhead-cni lab; do pgrep -x "$name" | sed "s/^/process $name /" || true; done
}
sweep() {
    [[ ! -x "$target/debug/lab" ]] || "$target/debug/lab" sweep
}
before=""
finish() {
    local status=$?
    if ((status != 0)); then
        printf '\n=== FAILED: %s\n' "$current" >&2
        sweep >&2 || true
    fi
}
trap finish EXIT

shell_syntax() {
    local script
    for script in .ci/run $(git ls-files '*.sh'); do bash -n "$script"; done
}
formatted() {
    cargo fmt --all --check
    rustfmt --check --edition 2024 tests/fuzz/targets/*.rs
}
dependencies() {
    if command -v cargo-deny >/dev/null; then
        cargo deny --locked check --hide-inclusion-graph bans licenses sources
    else
        echo "SKIPPED: cargo-deny is not installed (deploy/toolchain.sh --deny compiles it, about 5 minutes)"
    fi
}
documented() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --lib --no-deps --locked --quiet
}
nothing_left() {
    sweep
    local after
    after=$(residue | sort)
    diff <(echo "$before") <(echo "$after") && return
    echo "the lines above (>) were left behind by the tests" >&2
    return 1
}

((EUID == 0)) || { echo "the tests make network namespaces and load programs: run them as root" >&2; exit 1; }
step "toolchain" deploy/toolchain.sh --test
before=$(residue | sort)
step "shell syntax" shell_syntax
step "format" formatted
step "dependencies: bans, licenses, sources" dependencies
step "clippy" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
step "documentation" documented
# All targets at once, so that the tests find the binaries they run and nothing is built twice.
step "build" cargo build --workspace --all-targets --locked --quiet
step "tests" cargo test --workspace --locked
step "image" env BULKHEAD_PROFILE=dev deploy/image.sh
step "fuzz" tests/fuzz/run.sh "${BULKHEAD_FUZZ_SECONDS:-10}"
step "nothing left behind" nothing_left

printf '\n=== passed\n'
printf '%s\n' "${times[@]}" "$(printf '%5d s  in all' "$SECONDS")"
