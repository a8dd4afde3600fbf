#!/usr/bin/env bash
# Builds static binaries and makes the container image of them, without a container engine:
#
#   deploy/image.sh [ARCHIVE]      default: target/bulkhead-image.tar
#
#   BULKHEAD_IMAGE         name and tag in the image, default bulkhead/bulkhead:VERSION
#   BULKHEAD_PROFILE       release, or dev: built sooner, for tests
#   BULKHEAD_BINARIES      more architectures: words like arm64=DIR, with static binaries made elsewhere
#
# Load it with `ctr -n k8s.io images import`, `k3s ctr images import`, `docker load -i` or
# `skopeo copy oci-archive:ARCHIVE docker://...`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH="${CARGO_HOME:-${HOME:=/root}/.cargo}/bin:$PATH" HOME

target=${CARGO_TARGET_DIR:-target}
archive=${1:-$target/bulkhead-image.tar}
profile=${BULKHEAD_PROFILE:-release}
host=$(rustc -vV | sed -n 's/^host: //p')
case "$host" in
x86_64-*) architecture=amd64 ;;
aarch64-*) architecture=arm64 ;;
*) echo "image: no image for $host" >&2 && exit 1 ;;
esac

deploy/toolchain.sh
echo "== building static binaries"
# Naming the target keeps the flag away from build scripts and macros, which cannot be static.
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --profile "$profile" --locked --target "$host" --target-dir "$target/static" -p bulkhead -p bulkhead-cni
cargo build --quiet --locked -p lab --bin lab
binaries="$target/static/$architecture"
mkdir -p "$binaries"
for name in bulkhead bulkhead-cni; do
    strip --strip-debug -o "$binaries/$name" "$target/static/$host/${profile/#dev/debug}/$name"
done

echo "== the image"
arguments=(--binaries "$architecture=$binaries" --output "$archive")
for more in ${BULKHEAD_BINARIES:-}; do arguments+=(--binaries "$more"); done
[[ -z "${BULKHEAD_IMAGE:-}" ]] || arguments+=(--reference "$BULKHEAD_IMAGE")
"$target/debug/lab" image "${arguments[@]}"

# What a container has: the layer, and nothing else.
if ((EUID == 0)); then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    mkdir "$root/archive" "$root/root"
    tar -xf "$archive" -C "$root/archive"
    layer=$(sed 's/.*"Layers":\["\([^"]*\)".*/\1/' "$root/archive/manifest.json")
    tar -xf "$root/archive/$layer" -C "$root/root"
    chroot "$root/root" /bulkhead --version
    CNI_COMMAND=VERSION chroot "$root/root" /bulkhead-cni </dev/null
    echo
fi
ls -l "$archive"
