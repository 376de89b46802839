"""What Tailscale tells: of this machine's addresses, of what leads past the proxy, and of peers."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.interfaces import of_ifconfig
from proxy.localapi import Places, SilentError
from proxy.tailscale import (
    UNKNOWN,
    Rule,
    Tailscale,
    Who,
    is_device,
    of_interfaces,
    of_serve,
    of_status,
    of_whois,
)
from tests.fakes.localapi import Tailnet, person, tagged, tailscaled
from tests.test_interfaces import MAC

FAKES = Path(__file__).parent / "fakes"
V4, V6 = "100.101.102.103", "fd7a:115c:a1e0::1901:6667"

# Any JSON, whose objects have the names that are looked for.
NAMES = (
    *("BackendState", "TUN", "TailscaleIPs", "Self", "DNSName", "User", "UserID", "LoginName", "Node", "Name", "Tags"),
    *("ComputedName", "UserProfile", "TCP", "Web", "Services", "Foreground", "AllowFunnel", "Handlers", "Proxy"),
    *("TCPForward", "TerminateTLS", "HTTP", "443", "mac.tail1234.ts.net:443", "/"),
)
VALUES = ("Running", "Stopped", V4, V6, "8.8.8.8", "0.0.0.0", "127.0.0.1:11434", "http://[::1:11434", "11434", "a.b.")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES) | st.text(max_size=9),
    lambda deeper: (
        st.lists(deeper, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), deeper, max_size=8)
    ),
    max_leaves=30,
)


def status(**changes):
    """Return a status as tailscaled gives it, with changes."""
    return Tailnet("/nowhere").status() | changes


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_of_a_machine_that_is_up():
    """Addresses are those of this machine, IPv4 first; the name comes without its final dot."""
    tailnet = of_status(status(TailscaleIPs=[V6, V4]), "localapi")
    assert tailnet.addresses == (V4, V6)
    assert (tailnet.state, tailnet.tun, tailnet.source) == ("Running", True, "localapi")
    assert (tailnet.name, tailnet.user) == ("mac.tail1234.ts.net", "alice@example.com")
    assert (tailnet.problem, tailnet.hint) == (None, None)


@pytest.mark.parametrize(
    ("changes", "addresses"),
    [
        pytest.param({"TailscaleIPs": None}, (V4, V6), id="told_of_itself_only"),
        pytest.param({"TailscaleIPs": [V4], "Self": None, "User": None}, (V4,), id="told_on_top_only"),
        pytest.param({"TUN": None}, (V4, V6), id="old_release_tells_no_tun"),
        pytest.param({"TailscaleIPs": [V4, V4]}, (V4,), id="twice"),
        pytest.param({"TailscaleIPs": [V4, "192.168.1.7", "0.0.0.0", "::", 7]}, (V4,), id="wider_ones_are_dropped"),
        pytest.param({"TailscaleIPs": [V6]}, (V6,), id="tailnet_without_ipv4"),
    ],
)
def test_status_with_less(changes, addresses):
    """What isn't told is missing; what is no address of a tailnet is never listened on."""
    assert of_status(status(**changes), "cli").addresses == addresses


@pytest.mark.parametrize(
    ("changes", "problem", "hint"),
    [
        pytest.param({"BackendState": "Stopped"}, "is stopped", "tailscale up", id="stopped"),
        pytest.param({"BackendState": "NeedsLogin"}, "not logged in", "tailscale up", id="needs_login"),
        pytest.param({"BackendState": "NoState"}, "is starting", "tailscale status", id="no_state"),
        pytest.param({"BackendState": "Starting"}, "is starting", "tailscale status", id="starting"),
        pytest.param({"BackendState": "NeedsMachineAuth"}, "approved", "admin/machines", id="needs_approval"),
        pytest.param({"BackendState": "InUseOtherUser"}, "another user", "log out", id="other_user"),
        pytest.param({"BackendState": "New\x1b"}, r"state is New\x1b", "tailscale status", id="of_a_later_release"),
        pytest.param({"TUN": False}, "past this proxy", "--tun=userspace-networking", id="userspace"),
        pytest.param(
            {"TUN": False, "BackendState": "Stopped"}, "past this proxy", "Tailscale app", id="userspace_and_stopped"
        ),
        pytest.param({"TailscaleIPs": [], "Self": {}}, "no address", "tailscale ip", id="no_address"),
        pytest.param({"TailscaleIPs": ["10.1.2.3"]}, "not in the ranges of Tailscale: 10.1.2.3", "", id="own_range"),
        pytest.param({"BackendState": None}, "state is unknown", "tailscale status", id="no_status_at_all"),
    ],
)
def test_status_with_a_problem(changes, problem, hint):
    """Whatever is wrong is told with its remedy, and then there is no address to listen on."""
    tailnet = of_status(status(**changes), "cli")
    assert tailnet.addresses == ()
    assert problem in tailnet.problem
    assert hint in tailnet.hint


@given(ANY_JSON)
def test_status_in_any_form(document):
    """Whatever comes, there are addresses of devices in a tailnet, or a problem with a hint; never both."""
    tailnet = of_status(document, "cli")
    assert all(map(is_device, tailnet.addresses))
    assert bool(tailnet.addresses) is (tailnet.problem is None) is (tailnet.hint is None)


@pytest.mark.parametrize(
    ("address", "device"),
    [
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("100.63.255.255", False),
        ("100.128.0.0", False),
        ("100.115.91.255", True),
        ("100.115.92.0", False),
        ("100.115.93.255", False),
        ("100.115.94.0", True),
        ("100.100.100.100", False),
        ("fd7a:115c:a1e0::1", True),
        ("fd7a:115c:a1e0:ab12::1", True),
        ("fd7a:115c:a1e0::53", False),
        ("fd7a:115c:a1e1::1", False),
        ("::ffff:100.64.0.1", False),
        ("fe80::1%utun4", False),
        ("mac.tail1234.ts.net", False),
        ("100.64.0.0/10", False),
    ],
)
def test_is_device(address, device):
    """A device's address is one that Tailscale assigns: not ChromeOS' part of the range, nor the resolver."""
    assert is_device(address) is device


# --- interfaces -------------------------------------------------------------------------------------------------------


def utun(number, *lines, flags="UP,POINTOPOINT,RUNNING,MULTICAST", name="utun"):
    """Return what ifconfig prints of an interface."""
    return f"{name}{number}: flags=8051<{flags}> mtu 1280\n" + "".join(f"\t{line}\n" for line in lines)


OWN = f"inet {V4} --> {V4} netmask 0xffffffff"
OTHER = "inet 100.90.1.2 --> 100.90.1.2 netmask 0xffffffff"


@pytest.mark.parametrize(
    ("listed", "addresses"),
    [
        pytest.param(MAC, (V4, V6), id="beside_a_carrier_and_another_vpn"),
        pytest.param(utun(4, OWN), (V4,), id="ipv4_alone"),
        pytest.param(utun(4, f"inet6 {V6} prefixlen 128"), (V6,), id="ipv6_alone"),
        pytest.param(utun(0, OWN, name="tailscale"), (V4,), id="name_on_linux"),
    ],
)
def test_interfaces_show_the_address(listed, addresses):
    """The one point-to-point interface with an address of its own in the range is Tailscale's."""
    tailnet = of_interfaces(of_ifconfig(listed))
    assert (tailnet.addresses, tailnet.source, tailnet.problem) == (addresses, "interface", None)


@pytest.mark.parametrize(
    "listed",
    [
        pytest.param("", id="none"),
        pytest.param(utun(0, OWN, flags="UP,BROADCAST,RUNNING,MULTICAST", name="en"), id="lan_of_a_carrier"),
        pytest.param(utun(0, OWN, name="ppp"), id="modem"),
        pytest.param(utun(4, OWN, flags="UP,BROADCAST"), id="not_point_to_point"),
        pytest.param(utun(4, f"inet {V4} --> 100.64.0.1 netmask 0xffc00000"), id="vpn_with_a_whole_network"),
        pytest.param(utun(4, "inet 100.115.92.2 --> 100.115.92.1 netmask 0xffffffff"), id="chromeos"),
        pytest.param(utun(4, "inet 100.100.100.100 --> 100.100.100.100 netmask 0xffffffff"), id="resolver"),
        pytest.param(utun(4, "inet 10.8.0.6 --> 10.8.0.5 netmask 0xffffffff"), id="another_range"),
        pytest.param(utun(4, "inet6 fd7a:115c:a1e1::1 prefixlen 48"), id="another_prefix"),
        pytest.param(utun(4, "inet6 fe80::1%utun4 prefixlen 64 scopeid 0x18"), id="link_local"),
    ],
)
def test_interfaces_of_others(listed):
    """Carriers and other VPNs use the range too: what isn't surely Tailscale's is not taken."""
    assert of_interfaces(of_ifconfig(listed)) is None


@pytest.mark.parametrize(
    ("listed", "shown"),
    [
        pytest.param(utun(4, OWN) + utun(7, OTHER), f"{V4} (utun4), 100.90.1.2 (utun7)", id="two_interfaces"),
        pytest.param(utun(4, OWN, OTHER), f"{V4} (utun4), 100.90.1.2 (utun4)", id="two_on_one"),
        pytest.param(
            utun(4, OTHER) + utun(7, f"inet6 {V6} prefixlen 48"),
            f"100.90.1.2 (utun4), {V6} (utun7)",
            id="each_its_kind",
        ),
    ],
)
def test_interfaces_in_doubt(listed, shown):
    """Where more than one address could be Tailscale's none is taken, and all are named."""
    tailnet = of_interfaces(of_ifconfig(listed))
    assert tailnet.addresses == ()
    assert shown in tailnet.problem
    assert "--listen" in tailnet.hint


# --- whois ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "who"),
    [
        pytest.param(person("laptop", "alice@example.com"), Who("laptop", "alice@example.com"), id="person"),
        pytest.param(tagged("runner", "tag:ci", "tag:eu"), Who("runner", "tag:ci,tag:eu"), id="tagged"),
        pytest.param(
            {"Node": {"ComputedName": "bob-mac.tail99.ts.net."}, "UserProfile": {"LoginName": "bob@example.org"}},
            Who("bob-mac.tail99.ts.net", "bob@example.org"),
            id="shared_in_keeps_its_whole_name",
        ),
        pytest.param({"Node": {"Name": "nas.tail1234.ts.net."}}, Who("nas", None), id="first_label_of_name"),
        pytest.param({"Node": None, "UserProfile": {"LoginName": "a@b"}}, Who(None, "a@b"), id="user_alone"),
        pytest.param({"Node": {"Tags": [], "ComputedName": "x"}, "UserProfile": None}, Who("x", None), id="null"),
        pytest.param({"Node": {"ComputedName": "x" * 999}}, Who("x" * 256, None), id="cut"),
        pytest.param({"Node": {"ComputedName": "."}}, None, id="no_name"),
        pytest.param({}, None, id="nothing"),
        pytest.param(None, None, id="nobody"),
    ],
)
def test_whois(answer, who):
    """A peer is its device's name with its user, or with its tags where it belongs to nobody."""
    assert of_whois(answer) == who


@given(ANY_JSON)
def test_whois_in_any_form(document):
    """Whatever comes, names are texts that aren't empty, or absent; and somebody without either is nobody."""
    who = of_whois(document)
    assert who is None or any(who)
    assert all(text is None or 0 < len(text) <= 256 for text in who or ())


# --- serve and funnel -------------------------------------------------------------------------------------------------

HOST = "mac.tail1234.ts.net"


def web(target, port=443, mount="/", protocol="HTTPS", **more):
    """Return a configuration that serves `target` as a web site."""
    handlers = {f"{HOST}:{port}": {"Handlers": {mount: {"Proxy": target}}}}
    return {"TCP": {str(port): {protocol: True}}, "Web": handlers, **more}


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        pytest.param(web("http://127.0.0.1:11434"), "tailscale serve --https=443 off", id="web"),
        pytest.param(web("http://localhost:11434/v1"), "tailscale serve --https=443 off", id="with_a_path"),
        pytest.param(web("https+insecure://localhost:11434"), "tailscale serve --https=443 off", id="insecure"),
        pytest.param(web("localhost:11434"), "tailscale serve --https=443 off", id="without_scheme"),
        pytest.param(web("11434"), "tailscale serve --https=443 off", id="port_alone"),
        pytest.param(web("http://[::1]:11434"), "tailscale serve --https=443 off", id="ipv6"),
        pytest.param(web("http://127.1.2.3:11434"), "tailscale serve --https=443 off", id="any_of_127"),
        pytest.param(web("http://0.0.0.0:11434"), "tailscale serve --https=443 off", id="wildcard"),
        pytest.param(
            web("11434", 8443, "/my ai", "HTTP"), "tailscale serve --http=8443 '--set-path=/my ai' off", id="mounted"
        ),
        pytest.param(
            web("11434", AllowFunnel={f"{HOST}:443": True}), "tailscale funnel --https=443 off", id="web_funnel"
        ),
        pytest.param(
            web("11434", AllowFunnel={f"{HOST}:8443": True, f"{HOST}:443": False}),
            "tailscale serve --https=443 off",
            id="funnel_elsewhere",
        ),
        pytest.param(
            {"TCP": {"11434": {"TCPForward": "127.0.0.1:11434"}}}, "tailscale serve --tcp=11434 off", id="tcp"
        ),
        pytest.param(
            {"TCP": {"443": {"TCPForward": "localhost:11434", "TerminateTLS": HOST}}},
            "tailscale serve --tls-terminated-tcp=443 off",
            id="tls_terminated",
        ),
        pytest.param(
            {"TCP": {"443": {"TCPForward": "127.0.0.1:11434"}}, "AllowFunnel": {f"{HOST}:443": True}},
            "tailscale funnel --tcp=443 off",
            id="tcp_funnel",
        ),
        pytest.param(
            {"Services": {"svc:ai": web("http://127.0.0.1:11434")}},
            "tailscale serve --service=svc:ai --https=443 off",
            id="service",
        ),
        pytest.param({"Foreground": {"5e5510": web("11434")}}, "with Ctrl-C", id="foreground"),
    ],
)
def test_serve_rules_that_lead_past_the_proxy(config, hint):
    """Every way of serve and funnel to Ollama's port is found, with the command that closes it."""
    (rule,) = of_serve(config, 11434)
    assert hint in rule.hint
    assert "past this proxy" in rule.problem
    assert ("everyone on the internet" in rule.problem) is ("funnel" in hint)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="none"),
        pytest.param({}, id="empty"),
        pytest.param(web("http://127.0.0.1:3000"), id="another_port"),
        pytest.param(web("http://192.168.1.9:11434"), id="another_machine"),
        pytest.param(web("http://127.0.0.1:11434.evil:80"), id="no_port"),
        pytest.param(web("unix:/var/run/x.sock"), id="socket"),
        pytest.param(web("1" * 9999), id="no_number"),
        pytest.param({"Web": {f"{HOST}:443": {"Handlers": {"/": {"Path": "/srv/11434"}}}}}, id="files"),
        pytest.param({"TCP": {"11434": {"TCPForward": "127.0.0.1:22"}}}, id="served_on_that_port"),
    ],
)
def test_serve_rules_that_lead_elsewhere(config):
    """Rules for other ports and machines are nobody's business here."""
    assert of_serve(config, 11434) == ()


@given(ANY_JSON)
def test_serve_rules_in_any_form(document):
    """Whatever comes, what is found is told in text that steers no terminal."""
    assert all(text.isprintable() for rule in of_serve(document, 11434) for text in rule)


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch):
    """Give a folder for a Tailscale of its own, with an empty folder of programs in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # short enough for the address of a Unix socket
        monkeypatch.setenv("FAKE_TAILSCALE", name)
        Path(name, "bin").mkdir()
        yield Path(name)


@pytest.fixture
def tailscale(folder):
    """Give a Tailscale that is asked on a Mac with nothing but what is in `folder`."""
    return Tailscale(
        Places(sockets=(f"{folder}/socket",), app=f"{folder}/app", tools=(), path=f"{folder}/bin", platform="darwin")
    )


@pytest.fixture(params=["localapi", "cli"])
def source(request, folder):
    """Give each way to be asked, with a Tailscale that can be asked in just this way."""
    with ExitStack() as stack:
        if request.param == "localapi":
            stack.enter_context(tailscaled(folder, folder / "socket"))
        else:
            (folder / "bin/tailscale").symlink_to(FAKES / "tailscale")
        yield request.param


def ifconfig(folder, output):
    """Put an `ifconfig` that prints `output` among the programs."""
    (folder / "output").write_text(output)
    (folder / "bin/ifconfig").write_text(f"#!/bin/sh\nexec cat '{folder}/output'\n")
    (folder / "bin/ifconfig").chmod(0o755)


async def test_look_sees_a_life(folder, tailscale, source):
    """Each look tells how things are now: before the login, up, at another address, and stopped."""
    ifconfig(folder, utun(7, OTHER))  # never taken while Tailscale answers
    tailnet = Tailnet(folder)
    tailnet.change(state="NeedsLogin")
    assert "not logged in" in (await tailscale.look()).problem
    tailnet.change(state="Running")
    seen = await tailscale.look()
    assert (seen.addresses, seen.source) == ((V4, V6), source)
    tailnet.change(ips=["100.70.0.9"])
    assert (await tailscale.look()).addresses == ("100.70.0.9",)
    tailnet.change(state="Stopped")
    assert (await tailscale.look()).addresses == ()


@pytest.mark.parametrize("answers", ["", "[]", "null", '{"error": "no"}', "not JSON"])
async def test_look_at_the_interfaces(folder, tailscale, answers):
    """Where Tailscale tells nothing that can be understood, its interface shows the address."""
    ifconfig(folder, MAC)
    (folder / "bin/tailscale").write_text(f"#!/bin/sh\necho '{answers}'\n")
    (folder / "bin/tailscale").chmod(0o755)
    seen = await tailscale.look()
    assert (seen.addresses, seen.source, seen.state) == ((V4, V6), "interface", UNKNOWN)


async def test_look_at_nothing(folder, tailscale):
    """Where neither Tailscale nor an interface tells of it, the problem is why Tailscale doesn't answer."""
    seen = await tailscale.look()
    assert (seen.addresses, seen.source) == ((), "none")
    assert "Tailscale is not found" in seen.problem
    (folder / "bin/tailscale").symlink_to(FAKES / "tailscale")
    Tailnet(folder).change(cli="dead")
    seen = await tailscale.look()
    assert f"{folder}/bin/tailscale says nothing" in seen.problem
    assert "open -a Tailscale" in seen.hint


@pytest.mark.parametrize("address", ["100.64.0.7", "fd7a:115c:a1e0::7"])
async def test_who(folder, tailscale, source, address):
    """A peer's device and user are told, of IPv4 and IPv6; of an address that nobody has, nothing."""
    Tailnet(folder).change(peers={address: person("laptop", "alice@example.com")})
    assert await tailscale.who(address, 51000) == Who("laptop", "alice@example.com")
    if source == "localapi":
        assert await tailscale.who("100.64.0.8", 51000) is None


async def test_who_when_tailscale_is_silent(folder, tailscale):
    """That nobody can be asked is another thing than that nobody is known."""
    with pytest.raises(SilentError):
        await tailscale.who("100.64.0.8", 51000)


async def test_rules(folder, tailscale, source):
    """The rules of serve and funnel are found in either way; none when there are none."""
    assert await tailscale.rules(11434) == ()
    Tailnet(folder).change(serve=web("http://127.0.0.1:11434"))
    assert await tailscale.rules(11434) == (
        Rule(
            "`tailscale serve` leads from its https port 443 past this proxy to http://127.0.0.1:11434",
            "tailscale serve --https=443 off",
        ),
    )


async def test_rules_when_tailscale_is_silent(tailscale):
    """That the rules can't be known is another thing than that there are none."""
    assert await tailscale.rules(11434) is None
