"""Which addresses and URLs are refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easel.agent.address import AddressPolicy, check_url
from easel.errors import ConfigurationError, EaselError, InputRejected

PUBLIC = AddressPolicy()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "10.0.0.1",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "100.127.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::1",
        "2002:7f00:1::1",
        "2002:a9fe:a9fe::",
        "2001:0:7f00:1::1",
        "2a00:1450::5efe:10.0.0.1",
        "2a00:1450::200:5efe:192.168.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "not an address",
        "",
        "2130706433",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not PUBLIC.allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "100.63.255.255",
        "100.128.0.0",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "64:ff9b::101:101",
    ],
)
def test_public_addresses(address: str) -> None:
    assert PUBLIC.allows(address)


def test_networks_that_the_operator_allows() -> None:
    policy = AddressPolicy(["10.1.0.0/16", "127.0.0.1", "fd00::/8"])
    assert policy.allows("10.1.2.3")
    assert policy.allows("::ffff:10.1.2.3")
    assert policy.allows("127.0.0.1")
    assert policy.allows("fd00:ec2::254")
    assert not policy.allows("10.2.0.1")
    assert not policy.allows("127.0.0.2")
    assert not policy.allows("::1")
    with pytest.raises(ConfigurationError, match="allow_private"):
        AddressPolicy(["ten"])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "file:///etc/passwd",
        "gopher://example.com",
        "http://",
        "http:///x",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://:secret@example.com/",
        "http://127.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://169.254.169.254/latest/meta-data",
        "http://100.100.100.200/latest/meta-data",
        "http://exa mple.com/",
        "http://example.com/\r\nHost: x",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://[::1",
        "http://example.com/" + "x" * 9000,
        "",
        "//example.com/x",
    ],
)
def test_urls_that_are_refused_unasked(url: str) -> None:
    with pytest.raises(InputRejected):
        check_url(url, PUBLIC)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "HTTPS://example.com:8443/a?b#c",
        " http://1.1.1.1/x ",
        "http://ex.test/%20",
    ],
)
def test_urls_that_are_fetched(url: str) -> None:
    assert check_url(url, PUBLIC).fragment == ""


@given(st.text(max_size=60) | st.text(":/@[].%#?0123456789abx", max_size=40).map("http://".__add__))
def test_any_text_is_checked_or_refused(text: str) -> None:
    try:
        url = check_url(text, PUBLIC)
    except EaselError:
        return
    assert url.scheme in {"http", "https"}
    assert url.user is None
    assert url.host


@given(st.ip_addresses())
def test_what_is_allowed_is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if PUBLIC.allows(str(address)):
        inner = getattr(address, "ipv4_mapped", None) or address
        nat64 = address in ipaddress.ip_network("64:ff9b::/96")
        assert nat64 or (inner.is_global and not inner.is_multicast)
