"""The IP addresses of the public internet, by a list that is stricter than Python's.

The addresses that ``ipaddress`` calls global differ between patch releases. The networks here are
those of IANA's special-purpose registries that are not globally reachable, and others without hosts
of the web (https://www.iana.org/assignments/iana-ipv4-special-registry and
iana-ipv6-special-registry, as of 2025-10). Stricter than the registries are:

- 192.0.0.0/24 and 2001::/23, whole: the anycast addresses of protocols in them hold no images.
- 192.88.99.0/24, 2002::/16 (6to4), 2001::/32 (Teredo): relays that are deprecated.
- 168.63.129.16, by which Azure serves its virtual machines and nobody else.
- All of IPv6 but 2000::/3, which is all that is assigned to hosts.

Other clouds answer at addresses inside of these: 169.254.169.254 (most), 100.100.100.200
(Alibaba), 192.0.0.192 (Oracle), fd00:ec2::254 (AWS), fd20:ce::254 (Google).
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_REFUSED_4 = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by providers
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server
        "169.254.0.0/16",  # link-local
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
_UNICAST_6 = ip_network("2000::/3")
_REFUSED_6 = [
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
]
# Gateways translate these to IPv4: the address that is reached is the one inside.
_TRANSLATED = [ip_network("::ffff:0:0/96"), ip_network("64:ff9b::/96")]
# ISATAP: values of the second word from the right if the first one is an IPv4 address.
_ISATAP = {0x00005EFE, 0x02005EFE}


def is_public(address: str) -> bool:
    """Tell whether an IP address, and any embedded in it, is of the public internet."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _REFUSED_4)
    inside = IPv4Address(int(ip) & 0xFFFFFFFF)
    if any(ip in network for network in _TRANSLATED):
        return is_public(str(inside))
    if _is_isatap(ip) and not is_public(str(inside)):
        return False
    return ip in _UNICAST_6 and not any(ip in network for network in _REFUSED_6)


def _is_isatap(ip: IPv6Address) -> bool:
    return int(ip) >> 32 & 0xFFFFFFFF in _ISATAP
