"""Addresses to listen on and to forward to."""

from __future__ import annotations

import pytest

from proxy.settings import addresses
from proxy.settings.kinds import reader

read_listen, read_networks, read_upstream = (
    reader(kind) for kind in (addresses.Listen, addresses.Networks, addresses.Upstream)
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("tailscale", ("tailscale",), id="tailscale"),
        pytest.param("localhost", ("127.0.0.1",), id="localhost"),
        pytest.param("[::1], 127.0.0.1", ("::1", "127.0.0.1"), id="brackets_and_two"),
        pytest.param("0:0:0:0:0:0:0:1,::1", ("::1",), id="one_address_in_two_spellings"),
        pytest.param("::ffff:127.0.0.1", ("127.0.0.1",), id="ipv4_wrapped_in_ipv6"),
        pytest.param("tailscale,127.0.0.1", ("tailscale", "127.0.0.1"), id="tailscale_and_loopback"),
    ],
)
def test_listen_reads(text, kept):
    """Addresses are kept in their one canonical spelling."""
    assert read_listen(text) == kept


@pytest.mark.parametrize("text", ["", "mac.local", "127.0.0.1:80", "10.0.0.0/8", "127.1", "0x7f000001", "*", "any"])
def test_listen_refuses(text):
    """Only `tailscale`, `localhost` and whole IP addresses can be listened on."""
    with pytest.raises(ValueError, match="IP addresses, without a port"):
        read_listen(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        pytest.param("127.0.0.1", None, id="loopback"),
        pytest.param("127.9.9.9", None, id="any_of_127"),
        pytest.param("::1", None, id="loopback_v6"),
        pytest.param("100.64.0.1", None, id="tailscale_first"),
        pytest.param("100.127.255.254", None, id="tailscale_last"),
        pytest.param("fd7a:115c:a1e0::1", None, id="tailscale_v6"),
        pytest.param("100.63.255.255", "is a public address", id="just_below_tailscale"),
        pytest.param("100.128.0.0", "is a public address", id="just_above_tailscale"),
        pytest.param("0.0.0.0", "is every address", id="wildcard"),
        pytest.param("::", "is every address", id="wildcard_v6"),
        pytest.param("::ffff:0.0.0.0", "is every address", id="wildcard_wrapped"),
        pytest.param("192.168.1.7", "is an address on a LAN", id="lan"),
        pytest.param("10.0.0.7", "is an address on a LAN", id="lan_10"),
        pytest.param("172.16.0.7", "is an address on a LAN", id="lan_172"),
        pytest.param("169.254.1.1", "is an address on a LAN", id="link_local"),
        pytest.param("fe80::1", "is an address on a LAN", id="link_local_v6"),
        pytest.param("fd00::1", "is an address on a LAN", id="unique_local_v6"),
        pytest.param("fd7a:115c:a1e1::1", "is an address on a LAN", id="just_above_tailscale_v6"),
        pytest.param("8.8.8.8", "is a public address", id="public"),
        pytest.param("2606:4700::1111", "is a public address", id="public_v6"),
    ],
)
def test_listen_fault(text, fault):
    """Only loopback and Tailscale addresses are listened on unasked; `allow_any_address` opens the others."""
    found = addresses.listen_fault(text, allow_any=False)
    assert (found is None) is (fault is None)
    if fault is not None:
        assert f"{text} {fault}" in found
        assert "--allow-any-address" in found
    assert addresses.listen_fault(text, allow_any=True) is None


@pytest.mark.parametrize("text", ["224.0.0.1", "ff02::1", "255.255.255.255"])
def test_listen_fault_whatever_is_allowed(text):
    """Nobody listens on a group or broadcast address."""
    assert addresses.listen_fault(text, allow_any=True) == f"{text} can't be listened on"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        pytest.param("http://127.0.0.1:11434", "http://127.0.0.1:11434", id="usual"),
        pytest.param("HTTP://LocalHost:11434/", "http://localhost:11434", id="case_and_final_slash"),
        pytest.param("http://[::1]:80", "http://[::1]:80", id="v6"),
    ],
)
def test_upstream_reads(text, kept):
    """An upstream is http, a host and a port."""
    assert read_upstream(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:11434",
        "https://127.0.0.1:11434",
        "unix:///tmp/x",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:11434/v1",
        "http://127.0.0.1:11434?x",
        "http://127.0.0.1:11434#x",
        "http://user@127.0.0.1:11434",
        "http://user:key@127.0.0.1:11434",
        "http://::1:11434",
        "http://[::1]",
        "http://[1.2.3]:1",
        "http://a b:1",
        "http://a\r\nX: y:1",
        11434,
    ],
)
def test_upstream_refuses(text):
    """Any other scheme, a path, a query, user information or a missing port is an error."""
    with pytest.raises(ValueError, match="is not a URL of the form"):
        read_upstream(text)


@pytest.mark.parametrize(
    ("upstream", "on_loopback"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://[::ffff:127.0.0.1]:1", True),
        ("http://192.168.1.7:1", False),
        ("http://100.64.0.1:1", False),
        ("http://127.1:1", False),
        ("http://localhost.example:1", False),
    ],
)
def test_upstream_fault(upstream, on_loopback):
    """An upstream that isn't surely on loopback needs `allow_any_upstream`."""
    found = addresses.upstream_fault(upstream, allow_any=False)
    assert (found is None) is on_loopback
    assert found is None or "--allow-any-upstream" in found
    assert addresses.upstream_fault(upstream, allow_any=True) is None


@pytest.mark.parametrize("upstream", ["http://0.0.0.0:1", "http://[::]:1"])
def test_upstream_wildcard(upstream):
    """A wildcard is not an address to connect to, whatever is allowed."""
    assert "not an address to connect to" in addresses.upstream_fault(upstream, allow_any=True)


@pytest.mark.parametrize(
    ("upstream", "listening", "loop"),
    [
        pytest.param("http://127.0.0.1:5", ["127.0.0.1"], True, id="same"),
        pytest.param("http://127.0.0.1:6", ["127.0.0.1"], False, id="other_port"),
        pytest.param("http://127.0.0.1:5", ["127.0.0.2"], False, id="other_address"),
        pytest.param("http://127.0.0.1:5", ["100.64.0.1", "127.0.0.1"], True, id="one_of_two"),
        pytest.param("http://localhost:5", ["::1"], True, id="localhost_v6"),
        pytest.param("http://[::1]:5", ["::1"], True, id="v6"),
        pytest.param("http://[::ffff:127.0.0.1]:5", ["127.0.0.1"], True, id="wrapped"),
        pytest.param("http://127.0.0.1:5", ["0.0.0.0"], True, id="wildcard"),
        pytest.param("http://192.168.1.7:5", ["0.0.0.0"], False, id="wildcard_and_elsewhere"),
        pytest.param("http://mac.example:5", ["127.0.0.1"], False, id="name"),
        pytest.param("http://127.0.0.1:5", ["tailscale"], False, id="tailscale"),
    ],
)
def test_is_loop(upstream, listening, loop):
    """An upstream that is a listening address would make the proxy ask itself."""
    assert addresses.is_loop(upstream, listening, 5) is loop


def test_networks_are_canonical():
    """A network may be written with host bits or as a single address; what is none is named."""
    assert read_networks("192.168.7.9/24, 10.0.0.1") == ("192.168.7.0/24", "10.0.0.1/32")
    with pytest.raises(ValueError, match="names home, which is not a network"):
        read_networks("10.0.0.0/8,home")
