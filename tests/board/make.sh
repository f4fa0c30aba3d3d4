#!/usr/bin/env bash
# Make a virtual ARM64 board in a folder: Debian's arm64 userland, CPython and aarch64 wheels, run by an emulator.
#
#   make.sh DIR PYTHON      PYTHON: Python 3.11 of this machine, like the board's, with pip
#
# Needs no root and changes nothing outside DIR. Packages come from this machine's apt mirror; apt resolves them against
# an empty dpkg status, so every dependency is fetched, and dpkg-deb only unpacks. The emulator comes from backports:
# Debian 12's own (7.2) crashes when it imports ONNX Runtime.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
python=$2
root=$dir/root
apt=$dir/apt
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m1 -E '/debian/?$')
mkdir -p "$root" "$dir/bin"

fetch() { # fetch ARCHITECTURE SUITE COMMAND...: apt-get with a separate state
    local arch=$1 suite=$2 state=$apt/$1
    shift 2
    mkdir -p "$state"/{lists/partial,archives/partial,etc,empty}
    : >"$state/status"
    echo "deb [signed-by=$keys] $mirror $suite main" >"$state/etc/sources.list"
    local options=(
        -o "APT::Architecture=$arch" -o "APT::Architectures=$arch" -o "APT::Sandbox::User="
        -o "Dir::State=$state" -o "Dir::State::status=$state/status" -o "Dir::State::Lists=$state/lists"
        -o "Dir::Cache=$state" -o "Dir::Cache::archives=$state/archives" -o "Dir::Cache::pkgcache="
        -o "Dir::Cache::srcpkgcache=" -o "Dir::Etc=$state/etc" -o "Dir::Etc::SourceParts=$state/empty"
        -o "Dir::Log=$state" -o "Debug::NoLocking=1" -o "DPkg::Post-Invoke=" -o "APT::Update::Post-Invoke="
        -o "APT::Keep-Downloaded-Packages=true"
    )
    apt-get "${options[@]}" -qq update
    (cd "$state" && apt-get "${options[@]}" -qq "$@" >/dev/null)
}

fetch amd64 bookworm-backports download qemu-user
dpkg-deb --fsys-tarfile "$apt"/amd64/qemu-user_*.deb | tar -xO ./usr/bin/qemu-aarch64 >"$dir/bin/qemu-aarch64"
chmod +x "$dir/bin/qemu-aarch64"

fetch arm64 bookworm -y --download-only --no-install-recommends install \
    python3-minimal python3.11 libpython3.11-stdlib libstdc++6 zlib1g dash coreutils rsync openssh-sftp-server libfaketime
fetch arm64 bullseye -y --download-only --no-install-recommends install python3.9 libpython3.9-stdlib
rm "$apt"/arm64/archives/libc6_2.31* # Python 3.9, which is too old for EdgeKit, uses the board's C library
for package in "$apt"/arm64/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
        tar -x --no-same-owner -C "$root" --exclude='./usr/share/doc*' --exclude='./usr/share/man*'
done
rm -rf "$root"/usr/share/{locale,zoneinfo,perl*} "$apt"
mkdir -p "$root"/{tmp,proc,sys,dev,home/edge}
ln -sf dash "$root/bin/sh"
# sftp and scp need a passwd entry for their user
echo 'root:x:0:0::/home/edge:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
[ -e "$root/lib/ld-linux-aarch64.so.1" ] || ln -s usr/lib "$root/lib"

site=$root/usr/local/lib/python3.11/dist-packages
mkdir -p "$site"
platforms=(--platform manylinux2014_aarch64)
for glibc in 36 35 34 31 28 27 26 24 17; do platforms+=(--platform "manylinux_2_${glibc}_aarch64"); done
"$python" -m pip install --quiet --no-compile --target "$site" --only-binary=:all: --implementation cp \
    --python-version 3.11 --abi cp311 --abi abi3 --abi none "${platforms[@]}" numpy pillow onnxruntime
# compiled here, by the same minor version, so that the emulated start-up takes 4 s instead of 6
"$python" -m compileall -q -j 2 --invalidation-mode unchecked-hash -s "$root" "$root/usr/lib/python3.11" "$site" || true
touch "$dir/made"
