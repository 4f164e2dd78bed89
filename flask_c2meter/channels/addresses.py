"""Which addresses of the network are public: what an outgoing webhook may be sent to.

Pure, and without anything of this package. The promise: an address that could lead to this machine,
its network or its cloud's metadata is not public, whatever it is wrapped in.

The table is ours because that of :mod:`ipaddress` depends on the version of Python (3.11.7 takes
``192.0.0.0/24`` apart wrongly) and misses what embeds an IPv4 address.

Source: the IANA special-purpose registries for IPv4 and IPv6; RFC 6890, RFC 6052, RFC 5214.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NOT_PUBLIC = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers; Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, in the middle of public space
        "169.254.0.0/16",  # link-local; metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "2001::/23",  # protocol assignments: Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, embeds IPv4
        "3fff::/20",  # documentation
    )
)
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
#: All that is unicast and global. Outside are, among others, loopback, link-local and site-local,
#: IPv4 that is mapped, compatible or translated (NAT64), multicast.
_GLOBAL_IPV6 = ip_network("2000::/3")
#: First half of an interface identifier made by ISATAP; the IPv4 address is the second.
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: str) -> bool:
    """True if *address* belongs to a host of the public network.

    :param address: IPv4 or IPv6 as text; may have a zone.
    """
    ip = ip_address(address)
    return not any(ip in network for network in _NOT_PUBLIC) and (
        isinstance(ip, IPv4Address) or _is_global(ip)
    )


def is_loopback(address: str) -> bool:
    """True if *address* is this machine's, and not wrapped in anything."""
    return any(ip_address(address) in network for network in _LOOPBACK)


def _is_global(ip: IPv6Address) -> bool:
    return ip in _GLOBAL_IPV6 and int(ip) >> 32 & 0xFFFF_FFFF not in _ISATAP
