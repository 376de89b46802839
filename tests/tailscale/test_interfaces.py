"""Interfaces and their addresses, from what the systems' own tools print."""

from __future__ import annotations

import json
from ipaddress import ip_interface
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tailnet.interfaces import Interface, interfaces, is_held, of_ifconfig, of_ip
from proxy.tailnet.localapi import Places

MAC = """\
lo0: flags=8049<UP,LOOPBACK,RUNNING,MULTICAST> mtu 16384
\toptions=1203<RXCSUM,TXCSUM,TXSTATUS,SW_TIMESTAMP>
\tinet 127.0.0.1 netmask 0xff000000
\tinet6 ::1 prefixlen 128
\tinet6 fe80::1%lo0 prefixlen 64 scopeid 0x1
\tnd6 options=201<PERFORMNUD,DAD>
gif0: flags=8010<POINTOPOINT,MULTICAST> mtu 1280
stf0: flags=0<> mtu 1280
anpi0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\toptions=400<CHANNEL_IO>
\tether 6e:0f:2d:11:22:33
\tmedia: none
\tstatus: inactive
en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\toptions=6460<TSO4,TSO6,CHANNEL_IO,PARTIAL_CSUM,ZEROINVERT_CSUM>
\tether 3c:a6:f6:44:55:66
\tinet6 fe80::1c4e:9aff:fe12:3456%en0 prefixlen 64 secured scopeid 0xe
\tinet 100.72.14.9 netmask 0xffffff00 broadcast 100.72.14.255
\tnd6 options=201<PERFORMNUD,DAD>
\tmedia: autoselect
\tstatus: active
bridge0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
\tether 36:74:c0:77:88:99
\tConfiguration:
\t\tid 0:0:0:0:0:0 priority 0 hellotime 0 fwddelay 0
\t\tipfilter disabled flags 0x0
\tmember: en1 flags=3<LEARNING,DISCOVER>
\t        ifmaxaddr 0 port 9 priority 0 path cost 0
utun0: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1500
\tinet6 fe80::5d2b:7c1e:aabb:ccdd%utun0 prefixlen 64 scopeid 0x10
\tnd6 options=201<PERFORMNUD,DAD>
utun1: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1380
\tinet6 fe80::92cd:1fa7:eeff:11%utun1 prefixlen 64 scopeid 0x11
\tnd6 options=201<PERFORMNUD,DAD>
utun3: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1500
\tinet 10.8.0.6 --> 10.8.0.5 netmask 0xffffffff
utun4: flags=8051<UP,POINTOPOINT,RUNNING,MULTICAST> mtu 1280
\toptions=6460<TSO4,TSO6,CHANNEL_IO,PARTIAL_CSUM,ZEROINVERT_CSUM>
\tinet 100.101.102.103 --> 100.101.102.103 netmask 0xffffffff
\tinet6 fe80::3ea6:f6ff:fe44:5566%utun4 prefixlen 64 scopeid 0x18
\tinet6 fd7a:115c:a1e0::1901:6667 prefixlen 48
\tnd6 options=201<PERFORMNUD,DAD>
"""
"""A Mac whose carrier gives its LAN an address in 100.64.0.0/10, with Back to My Mac, another VPN, and Tailscale."""

LINUX = [
    {
        "ifindex": 1,
        "ifname": "lo",
        "flags": ["LOOPBACK", "UP", "LOWER_UP"],
        "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host", "label": "lo"}],
    },
    {
        "ifindex": 2,
        "ifname": "wwan0",
        "flags": ["POINTOPOINT", "NOARP", "UP", "LOWER_UP"],
        "addr_info": [{"family": "inet", "local": "100.72.14.9", "prefixlen": 30, "label": "wwan0"}],
    },
    {
        "ifindex": 5,
        "ifname": "tailscale0",
        "flags": ["POINTOPOINT", "MULTICAST", "NOARP", "UP", "LOWER_UP"],
        "mtu": 1280,
        "link_type": "none",
        "addr_info": [
            {"family": "inet", "local": "100.101.102.103", "prefixlen": 32, "scope": "global", "label": "tailscale0"},
            {"family": "inet6", "local": "fd7a:115c:a1e0::1901:6667", "prefixlen": 128, "scope": "global"},
            {"family": "inet6", "local": "fe80::8a1b:33ff:fe00:1", "prefixlen": 64, "scope": "link"},
        ],
    },
]
"""The output of `ip -j addr show` on a machine with a modem and Tailscale."""


def held(*addresses):
    return tuple(map(ip_interface, addresses))


class Lenient:
    """A socket of Linux with `net.ipv4.ip_nonlocal_bind` (public source: Documentation/networking/ip-sysctl.rst)."""

    def __init__(self, *_kind: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        pass

    def bind(self, _address: object) -> None:
        """Take any address."""


def test_ifconfig_of_a_mac():
    """Every interface is there with its addresses; the far end of a tunnel and a scope are none of them."""
    assert [(each.name, each.point_to_point, each.addresses) for each in of_ifconfig(MAC) if each.addresses] == [
        ("lo0", False, held("127.0.0.1/8", "::1/128", "fe80::1/64")),
        ("en0", False, held("fe80::1c4e:9aff:fe12:3456/64", "100.72.14.9/24")),
        ("utun0", True, held("fe80::5d2b:7c1e:aabb:ccdd/64")),
        ("utun1", True, held("fe80::92cd:1fa7:eeff:11/64")),
        ("utun3", True, held("10.8.0.6/32")),
        (
            "utun4",
            True,
            held("100.101.102.103/32", "fe80::3ea6:f6ff:fe44:5566/64", "fd7a:115c:a1e0::1901:6667/48"),
        ),
    ]
    assert [each.name for each in of_ifconfig(MAC) if not each.addresses] == ["gif0", "stf0", "anpi0", "bridge0"]


@pytest.mark.parametrize(
    ("line", "address"),
    [
        # public source: network_cmds, ifconfig.tproj/af_inet6.c, in6_status: a destination stands before the length
        pytest.param("inet6 fd7a:115c:a1e0::1 --> fd7a:115c:a1e0::1 prefixlen 128", "fd7a:115c:a1e0::1/128", id="v6"),
        pytest.param("inet6 fe80::1%utun4 --> fe80::2%utun4 prefixlen 64 scopeid 0x18", "fe80::1/64", id="v6_scoped"),
        pytest.param("inet6 fd7a:115c:a1e0::1 prefixlen 48", "fd7a:115c:a1e0::1/48", id="v6_without"),
        pytest.param("inet 100.64.0.1 --> 100.64.0.1 netmask 0xffffffff", "100.64.0.1/32", id="v4"),
    ],
)
def test_ifconfig_of_a_tunnel(line, address):
    """The near end of a point-to-point address is read, with or without the far end after it."""
    (found,) = of_ifconfig(f"utun4: flags=8051<UP,POINTOPOINT,RUNNING> mtu 1280\n\t{line}\n")
    assert found.addresses == held(address)


def test_ip_of_linux():
    """The same of Linux, whose tool speaks JSON."""
    assert of_ip(json.dumps(LINUX).encode()) == (
        Interface("lo", False, held("127.0.0.1/8")),
        Interface("wwan0", True, held("100.72.14.9/30")),
        Interface(
            "tailscale0", True, held("100.101.102.103/32", "fd7a:115c:a1e0::1901:6667/128", "fe80::8a1b:33ff:fe00:1/64")
        ),
    )


@given(st.text(st.sampled_from("utn04: flags=<>POINTOPOINT\n\tinet6 100.64.0.1 --> netmask 0xffffffff prefixlen 12/")))
def test_ifconfig_in_any_form(text):
    """What isn't understood is passed over."""
    for each in of_ifconfig(text):
        assert each.name


def test_held():
    """Whether this machine has an address is what the kernel says, without a program or a packet."""
    assert is_held("127.0.0.1")
    assert not is_held("192.0.2.77")
    assert not is_held("nonsense")


@pytest.mark.parametrize("address", ["100.64.0.7", "fd7a:115c:a1e0::7"])
def test_no_address_is_held_where_any_can_be_bound(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Where the kernel lets programs bind any address, another machine's address isn't taken for this one's."""
    monkeypatch.setattr("proxy.tailnet.interfaces.socket.socket", Lenient)
    assert not is_held(address)


@pytest.mark.parametrize("text", ["", "null", "{}", "[1]", '[{"flags":7,"addr_info":[1,{"local":[]}]}]', "Usage: ip"])
def test_ip_in_any_form(text):
    """What isn't understood has no addresses."""
    assert [each.addresses for each in of_ip(text.encode()) if each.addresses] == []


@pytest.mark.parametrize(
    ("platform", "command", "arguments", "output"),
    [
        pytest.param("darwin", "ifconfig", "", MAC, id="macos"),
        pytest.param("linux", "ip", "-j addr show", json.dumps(LINUX), id="linux"),
    ],
)
async def test_interfaces_are_listed_with_the_systems_own_tool(tmp_path, platform, command, arguments, output):
    """Each system is asked with the tool that it ships."""
    (tmp_path / "output").write_text(output)
    program = tmp_path / command
    program.write_text(f"#!/bin/sh\ntest \"$*\" = '{arguments}' && cat '{tmp_path}/output'\n")
    program.chmod(0o755)
    listed = await interfaces(Places(path=str(tmp_path), platform=platform))
    assert ip_interface("100.101.102.103/32") in listed[-1].addresses


@pytest.mark.parametrize("platform", ["darwin", "linux"])
async def test_interfaces_without_the_tool(tmp_path, platform):
    """Where the tool is missing or can't be run, no interface is seen."""
    places = Places(path=str(tmp_path), platform=platform)
    assert await interfaces(places) == ()
    for name in ("ifconfig", "ip"):
        (tmp_path / name).write_text("#!/nowhere/sh\n")
        (tmp_path / name).chmod(0o755)
    assert await interfaces(places) == ()
