"""Whether an address can be reached from this machine alone."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host, by its name or its number."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
