#!/usr/bin/env bash
# Show the plugins at work: two containers on conf/10-mynet.conf, attached by cnitool.
# The demo runs in its own namespaces, which end with it.
#   deploy/demo.sh      CNI_PATH: the directory of other plugins than those of this tree
set -Eeuo pipefail
trap 'echo "demo: line $LINENO failed" >&2' ERR

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
PATH=$root/.tools/bin:$PATH:/usr/sbin:/sbin
export CNI_PATH=${CNI_PATH:-$root/.tools/cni}
export NETCONFPATH=/run/demo # has only the one configuration
config=$root/conf/10-mynet.conf
network=mynet gateway=10.244.0.1
node=192.0.2.1 outside=192.0.2.2 port=8000
times=()

bold='' plain=''
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1;36m' plain=$'\e[0m'
fi

heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { echo "   $*"; }
indent() { sed 's/^/   /'; }

die() {
    echo "demo: $*" >&2
    exit 1
}

milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
container_address() { ip -n "$1" -4 -br address show dev eth0 | awk '{print $3}' | cut -d/ -f1; }

# The simulated host has one uplink, to a host without a route to the containers' network.
make_machine() {
    ip netns add outside
    ip link add up0 type veth peer name ext0 netns outside
    ip address add "$node/24" dev up0
    ip -n outside address add "$outside/24" dev ext0
    ip link set up0 up
    ip -n outside link set ext0 up
    ip netns exec outside "$root/.venv/bin/python" "$root/deploy/whoami.py" "$outside" "$port" &
    until ask_outside 2>/dev/null >&2; do
        kill -0 $! 2>/dev/null || die "the outside host does not answer"
        sleep 0.05
    done
}

# Print the source address that the outside host sees: ask_outside [ip netns exec CONTAINER]
ask_outside() {
    # shellcheck disable=SC2016 # the inner shell expands these
    "$@" timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1" && cat <&3' "$outside" "$port"
}

list_links() { ip -br link | awk '{sub(/@.*/, "", $1); print $1}' | sort; }

list_rules() { nft list ruleset | awk '/10[.]244[.]|mynet/ {$1 = $1; print}'; }

list_leases() {
    find "/var/lib/cni/networks/$network" -name '*.*.*.*' -printf '%f\n' | sort
}

attach() {
    local name=$1 begin end result
    ip netns add "$name"
    begin=$(milliseconds)
    result=$(cnitool add "$network" "/run/netns/$name") || die "cnitool add $name: $result"
    end=$(milliseconds)
    times+=($((end - begin)))
    heading "ADD $name ($((end - begin)) ms)"
    indent <<<"$result"
}

show_inside() {
    heading "Inside $1"
    {
        ip -n "$1" -br address
        ip -n "$1" route
    } | indent
}

add_default_route() {
    heading "A default route for both"
    note "The configuration has no routes, so no plugin adds any. This demo does:"
    for name in c1 c2; do
        note "ip -n $name route add default via $gateway"
        ip -n "$name" route add default via "$gateway"
    done
}

ping_from() {
    local name=$1 whom=$2 address=$3 output
    output=$(ip netns exec "$name" ping -n -c 2 -i 0.2 -W 2 "$address") ||
        die "$name cannot ping $whom ($address): $output"
    note "$name -> $whom ($address): $(grep -o '[0-9]* received.*loss' <<<"$output")"
}

ping_all() {
    heading "Pings"
    ping_from c1 c2 "$(container_address c2)"
    ping_from c2 c1 "$(container_address c1)"
    ping_from c1 "its gateway" "$gateway"
    ping_from c1 "the outside host" "$outside"
}

prove_masquerade() {
    local name seen
    heading "Source addresses at the outside host (its only route: $(ip -n outside route | xargs))"
    for name in c1 c2; do
        seen=$(ask_outside ip netns exec "$name")
        note "$name ($(container_address "$name")) came as $seen"
        [[ $seen == "$node" ]] || die "not masqueraded"
    done
}

check() {
    heading "CHECK"
    for name in c1 c2; do
        cnitool check "$network" "/run/netns/$name" || die "cnitool check $name failed"
        note "$name is unchanged since its ADD"
    done
}

show_traces() {
    links=$(list_links | xargs)
    leases=$(list_leases | xargs)
    rules=$(list_rules)
    note "links: $links"
    note "leases: ${leases:-none}"
    note "firewall rules that name the network or its addresses:"
    indent <<<"${rules:-none}"
}

detach() {
    heading "DEL"
    for name in c1 c2; do
        cnitool del "$network" "/run/netns/$name" || die "cnitool del $name failed"
        [[ $(ip -n "$name" -br link | wc -l) == 1 ]] || die "$name has more than its loopback"
        note "$name is detached"
    done
}

prove_clean() {
    heading "After DEL (the network's bridge stays for the next container)"
    show_traces
    [[ $links == "cni0 $links_before" ]] || die "links are left; there were $links_before"
    [[ -z $leases ]] || die "leases are left"
    [[ -z $rules ]] || die "rules are left: $rules"
}

main() {
    local begin now median
    begin=$(milliseconds)
    mkdir "$NETCONFPATH"
    cp "$config" "$NETCONFPATH"
    make_machine
    links_before=$(list_links | xargs)
    heading "The configuration: ${config#"$root/"}"
    indent <"$config"
    attach c1
    attach c2
    show_inside c1
    show_inside c2
    add_default_route
    ping_all
    prove_masquerade
    check
    heading "The state after ADD"
    show_traces
    [[ $leases && $rules ]] || die "no leases or no rules after ADD"
    detach
    prove_clean
    now=$(milliseconds)
    median=$(((times[0] + times[1]) / 2)) # of two values
    heading "All of it worked, in $((now - begin)) ms; median ADD $median ms."
}

if [[ ${1:-} != --inside ]]; then
    exec "$root/tests/in-sandbox" "$0" --inside
fi
main
