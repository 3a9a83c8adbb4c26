"""Which addresses a URL given by a caller may lead to.

The host is resolved once, every address is checked, and the connection goes to a checked address: a name that answers
differently the second time (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from easel.errors import ConfigurationError, InputRejected

MAX_URL_LENGTH = 8192

_NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds keep their metadata service here
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "::/96",  # deprecated IPv4-compatible addresses
        "64:ff9b:1::/48",  # NAT64 prefixes of local use
        "100::/64",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
"""Beyond what `ipaddress` calls not global, which differs between Python versions."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class ForbiddenAddress(OSError):
    """Every address of a host is one that may not be fetched from."""


class AddressPolicy:
    """Public addresses, and the private networks that the operator allows."""

    def __init__(self, allow_private: Iterable[str] = ()) -> None:
        self._allowed: list[IPv4Network | IPv6Network] = []
        for text in allow_private:
            try:
                self._allowed.append(ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise ConfigurationError(
                    f"setting agent.inputs.allow_private: {error}",
                    hint="write networks as 10.1.0.0/16",
                ) from None

    def allows(self, text: str) -> bool:
        """Tell whether an IP address in text form may be connected to; False for anything that is none."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(
            address in network for network in self._allowed if network.version == address.version
        ):
            return True
        if not _public(address):
            return False
        return all(_public(inner) for inner in _embedded(address))


class CheckedResolver(AbstractResolver):
    """Resolves a host and returns only the addresses that the policy allows."""

    def __init__(self, policy: AddressPolicy, lookup: AbstractResolver | None = None) -> None:
        self._policy = policy
        self._lookup = lookup

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Raise `ForbiddenAddress` when none of the host's addresses is allowed, OSError when it has none."""
        if self._lookup is None:
            self._lookup = ThreadedResolver(asyncio.get_running_loop())
        found = await self._lookup.resolve(host, port, family)
        allowed = [entry for entry in found if self._policy.allows(entry["host"])]
        if found and not allowed:
            raise ForbiddenAddress(f"{host} has no public address")
        return allowed

    async def close(self) -> None:
        """Release the resolver below."""
        if self._lookup is not None:
            await self._lookup.close()


def check_url(text: str, policy: AddressPolicy) -> URL:
    """Parse a URL and refuse what can be refused without resolving its host.

    aiohttp does not ask the resolver about hosts that are IP addresses, so those are checked here. Ports are free.
    Raises `InputRejected`.
    """
    if len(text) > MAX_URL_LENGTH:
        raise InputRejected(f"the URL is longer than {MAX_URL_LENGTH} characters")
    text = text.strip()
    if any(character <= " " or character == "\x7f" for character in text):
        raise InputRejected("the URL has white space or control characters in it")
    try:
        url = URL(text)
        host, port = url.raw_host, url.port  # what aiohttp connects to
    except ValueError as error:
        raise InputRejected(f"the URL cannot be read: {error}") from None
    if url.scheme not in {"http", "https"}:
        raise InputRejected(
            f"URLs of scheme {url.scheme!r} are not fetched",
            hint="give an http or https URL, a data: URI or base64",
        )
    if not host or port == 0:
        raise InputRejected("the URL names no host" if not host else "the URL names port 0")
    if url.user is not None or url.password is not None:
        raise InputRejected(
            "the URL carries a user name or password",
            hint="use a signed URL, or send the file as base64",
        )
    if packed := _odd_ipv4(host):
        host = packed
        url = url.with_host(host)
    if _is_address(host) and not policy.allows(host):
        raise forbidden(host)
    return url.with_fragment(None)


def forbidden(host: str) -> InputRejected:
    """Return the error for a host that may not be fetched from."""
    return InputRejected(
        f"the host {host!r} is not a public address",
        hint="the operator can allow private networks with the setting agent.inputs.allow_private",
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _odd_ipv4(host: str) -> str | None:
    """Return the dotted form of ``2130706433``, ``0x7f.1``, ``0177.0.0.1``, ``127.1``, which the system's resolver takes too."""
    if _is_address(host) or not host[:1].isdigit():
        return None
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def _public(address: IPv4Address | IPv6Address) -> bool:
    if (
        not address.is_global
        or address.is_multicast
        or address.is_reserved
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
    ):
        # NAT64's well-known prefix is reserved, but stands for the IPv4 address inside, which is checked by itself.
        return isinstance(address, IPv6Address) and address in _NAT64
    return not any(
        address in network for network in _NOT_PUBLIC if network.version == address.version
    )


def _embedded(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """List the IPv4 addresses that an IPv6 address leads to: 6to4, Teredo, NAT64, ISATAP."""
    if isinstance(address, IPv4Address):
        return []
    found: list[IPv4Address] = []
    if address.sixtofour:
        found.append(address.sixtofour)
    if address.teredo:
        found.extend(address.teredo)
    number = int(address)
    if address in _NAT64 or (number >> 32) & 0xFDFFFFFF == 0x00005EFE:
        found.append(IPv4Address(number & 0xFFFFFFFF))
    return found
