"""Records without a format, which releases up to 0.1 wrote, in the form of format 1.

Their lines have the facts of all parts side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from cni_common.spec.wire import Json

# Keys that both have.
_HEADER = (
    *("plugin", "network", "containerid", "ifname", "netns", "netns_id", "gone_since"),
    *("pid_ns", "stdin", "cni_args", "cni_path"),
)
# By plugin each part: its name, the key that is there when the part is, and the keys of its fields.
_INTERFACE = (
    ("veth", "veth", {"host_end": "veth", "host_end_mac": "veth_mac", "container_mac": "mac"}),
    ("masquerade", "masquerade", {"backend": "masquerade", "addresses": "addresses"}),
    ("ipam", "ipam", {"type": "ipam"}),
)
_PARTS: dict[str, tuple[tuple[str, str, dict[str, str]], ...]] = {
    "bridge": (
        *_INTERFACE,
        ("mac-filter", "mac_filter", {"port": "veth", "mac": "mac_filter"}),
        (
            "gateway",
            "gateway_interface",
            {"interface": "gateway_interface", "addresses": "gateways"},
        ),
    ),
    "ptp": _INTERFACE,
    "portmap": (
        ("route-localnet", "localnet", {"interface": "localnet", "private": "localnet_private"}),
        (
            "host-ports",
            "backend",
            {key: key for key in ("backend", "ports", "elements", "chains", "suffix")}
            | {"waiting": "heirs"},
        ),
        ("connections", "udp", {"udp": "udp"}),
    ),
    "bandwidth": (
        (
            "limits",
            "host_veth",
            {
                "host_end": "host_veth",
                "host_end_mac": "host_veth_mac",
                "host_end_index": "host_veth_index",
                "ingress": "ingress",
                "egress": "egress",
            },
        ),
        ("ifb", "ifb", {"device": "ifb", "mac": "ifb_mac"}),
    ),
    "tuning": (
        ("interface", "device", {"before": "device"}),
        ("sysctls", "sysctls", {"before": "sysctls", "after": "sysctls_after"}),
        ("backup", "backup", {"path": "backup"}),
    ),
    "firewall": (
        (
            "firewall",
            "backend",
            {key: key for key in ("backend", "addresses", "admin_chain", "zone", "bus")},
        ),
        ("isolation", "bridge", {key: key for key in ("policy", "bridge", "port", "found")}),
    ),
    "host-local": (
        ("lease", "directory", {key: key for key in ("directory", "addresses", "pod", "pod_uid")}),
    ),
}


def convert(facts: Json) -> dict[str, Any]:
    """Return the facts of a record without a format as one of format 1 has them."""
    found: dict[str, Any] = {"format": 1} | {key: facts[key] for key in _HEADER if key in facts}
    for part, sign, fields in _PARTS.get(str(facts["plugin"]), ()):
        if facts.get(sign):
            found[part] = {field: facts[key] for field, key in fields.items() if key in facts}
    return found
