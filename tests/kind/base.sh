#!/usr/bin/env bash
# Make the file system of kind's nodes without what is Kubernetes': Debian with systemd, containerd and the
# programs that kind, kubeadm, the kubelet and kube-proxy call.
#   tests/kind/base.sh FOLDER        FOLDER/base-<digest>.tar; nothing is done where the file is there
# mmdebstrap of deploy/prerequisites.sh --kind takes the packages from where apt of this machine has its own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
docker=$here/../../.tools/kind/docker
# Not a newer release: its systemd is the last that boots where the machine has cgroups of version 1.
release=bookworm
packages=(
    systemd systemd-sysv                                      # process 1
    containerd runc                                           # the runtime
    iproute2 iptables nftables conntrack ethtool kmod procps  # of kube-proxy, kubeadm and kubelet
    curl jq ca-certificates                                   # of kind
)

folder=$1
digest=$(sha256sum "${BASH_SOURCE[0]}" | cut -c -16)
file=$folder/base-$digest.tar
[[ ! -e $file ]] || exit 0
sources=$(find /etc/apt -name debian.sources -o -name sources.list | sort | head -n 1)
mkdir -p "$folder"
options=()
for path in /usr/share/{doc,man,locale,info,lintian}; do
    options+=(--dpkgopt="path-exclude=$path/*")
done
export PATH=$docker/usr/bin:$PATH
# Mounts, processes and names of its own: the packages' scripts run in here.
unshare --mount --pid --ipc --uts --fork --kill-child --mount-proc -- \
    mmdebstrap --quiet --mode=root --variant=minbase --format=tar "${options[@]}" \
    --include="$(IFS=,; echo "${packages[*]}")" "$release" "$file.new" "$sources"
rm -f "$folder"/base-*.tar
mv "$file.new" "$file"
