"""What Tailscale reports: of this machine's addresses, of what keeps it from having any, and of peers."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.tailnet.device import is_device
from proxy.tailnet.interfaces import of_ifconfig
from proxy.tailnet.localapi import TOOL_INTERVAL, Places, SilentError
from proxy.tailnet.serve_rules import Ports, Rule, Serving
from proxy.tailnet.tailscale import UNKNOWN, Tailscale, UnreadableError, of_interfaces, of_status
from tests.fakes.localapi import Tailnet, person, recorded, tailscaled
from tests.tailscale.test_interfaces import MAC

FAKES = Path(__file__).parent.parent / "fakes"
CAPABILITY = "example.com/cap/ollama"
V4, V6 = "100.101.102.103", "fd7a:115c:a1e0::1901:6667"

# Any JSON, whose objects have the names that are looked for.
NAMES = (
    *(
        "BackendState",
        "TUN",
        "TailscaleIPs",
        "Self",
        "DNSName",
        "User",
        "UserID",
        "LoginName",
        "Health",
        "KeyExpiry",
        "Expired",
        "AuthURL",
        "CurrentTailnet",
        "MagicDNSEnabled",
    ),
)
VALUES = ("Running", "Stopped", V4, V6, "8.8.8.8", "0.0.0.0", "2026-12-11T19:04:04Z", "https://a\x1b", "a.b.")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES) | st.text(max_size=9),
    lambda deeper: (
        st.lists(deeper, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), deeper, max_size=8)
    ),
    max_leaves=30,
)


RECORDED = ("100.64.0.1", "fd7a:115c:a1e0:ab12:4843:cd96:6240:1")


def status(**changes):
    """Return a status as tailscaled gives it, with changes."""
    return Tailnet("/nowhere").status() | changes


# --- status -----------------------------------------------------------------------------------------------------------


def test_status_of_a_machine_that_is_up():
    """Addresses are those of this machine, IPv4 first; the name comes without its final dot."""
    tailnet = of_status(status(TailscaleIPs=[V6, V4]), "localapi")
    assert tailnet.addresses == (V4, V6)
    assert (tailnet.state, tailnet.tun, tailnet.source) == ("Running", True, "localapi")
    assert (tailnet.name, tailnet.known_as) == ("mac.tail1234.ts.net",) * 2
    assert (tailnet.problem, tailnet.hint, tailnet.health, tailnet.key_expiry) == (None, "", (), None)


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
    """Missing facts are empty, and an address that isn't a tailnet's is never listened on."""
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
    """Each problem is reported with its remedy, and then there is no address to listen on."""
    tailnet = of_status(status(**changes), "cli")
    assert tailnet.addresses == ()
    assert problem in tailnet.problem
    assert hint in tailnet.hint


@pytest.mark.parametrize(
    ("name", "version", "problem", "hint"),
    [
        pytest.param("status-nopeers-running.txt", "1.102.5", None, "", id="running"),
        pytest.param("status-peers-running.txt", "1.102.5", None, "", id="running_with_peers"),
        pytest.param("cli-status.json", "1.102.5", None, "", id="running_by_the_command"),
        pytest.param("status-nopeers-running.txt", "1.98.10", None, "", id="running_of_1_98"),
        pytest.param("status-stopped.txt", "1.102.5", "Tailscale is stopped", "tailscale up", id="stopped"),
        pytest.param(
            *("status-needs-approval.txt", "1.102.5", "this machine must be approved in its tailnet"),
            "approve it at https://login.tailscale.com/admin/machines",
            id="waits_for_approval",
        ),
        pytest.param(
            *("status-needs-login-authurl.txt", "1.102.5", "Tailscale is not logged in"),
            "log in at http://192.168.88.1:8080/auth/343bdf1d24b594348a85",
            id="waits_for_a_browser",
        ),
        pytest.param(
            *("status-own-key-expired.json", "1.102.5-headscale"),
            *("this machine's key in its tailnet has expired, so it must log in again", "tailscale up"),
            id="key_expired",
        ),
    ],
)
def test_recorded_status(name, version, problem, hint):
    """Of each state that tailscaled was recorded in, the cause and the remedy are named; then it has no addresses."""
    tailnet = of_status(recorded(name, version), "localapi")
    assert (tailnet.problem, tailnet.hint) == (problem, hint)
    assert tailnet.addresses == ((*RECORDED,) if problem is None else ())


def test_status_of_a_machine_that_can_not_start():
    """While Tailscale starts without end, as without a control server, what its `Health` says is passed on."""
    cause = "The last login error was: fetch control key: connection refused"
    tailnet = of_status(status(BackendState="NoState", Health=[cause]), "localapi")
    assert tailnet.problem == f"Tailscale is starting: {cause}"


@pytest.mark.parametrize(
    ("expires", "expiry"),
    [
        pytest.param("2026-12-11T19:04:04Z", datetime(2026, 12, 11, 19, 4, 4, tzinfo=UTC), id="a_time"),
        pytest.param("2026-12-11T19:04:04.123456789+02:00", datetime(2026, 12, 11, 17, 4, 4, 123456, UTC), id="fine"),
        pytest.param("2026-12-11T19:04:04", datetime(2026, 12, 11, 19, 4, 4, tzinfo=UTC), id="without_a_zone"),
        pytest.param("0001-01-01T00:00:00Z", None, id="never"),
        pytest.param("soon", None, id="no_time"),
        pytest.param("", None, id="empty"),
        pytest.param(7, None, id="a_number"),
        pytest.param(None, None, id="null"),
    ],
)
def test_key_expiry(expires, expiry):
    """When this machine's key expires is read as Go writes it; the year 1 is none."""
    reported_status = status(Self=status()["Self"] | {"KeyExpiry": expires})
    assert of_status(reported_status, "cli").key_expiry == expiry


@pytest.mark.parametrize(
    ("dns", "magic_dns", "known_as"),
    [
        pytest.param("mac.tail1234.ts.net.", True, "mac.tail1234.ts.net", id="resolved"),
        pytest.param("mac.tail1234.ts.net.", None, "mac.tail1234.ts.net", id="not_reported"),
        pytest.param("mac.tail1234.ts.net.", False, None, id="magicdns_off"),
        pytest.param("mac.mesh.example.com.", True, "mac.mesh.example.com", id="another_domain"),
        pytest.param('a"b\n.', True, None, id="no_host_name"),
        pytest.param("", True, None, id="none"),
    ],
)
def test_name_for_clients(dns, magic_dns, known_as):
    """A name is given to clients only if MagicDNS resolves it and it is a host name."""
    tailnet = of_status(
        status(Self=status()["Self"] | {"DNSName": dns}, CurrentTailnet={"MagicDNSEnabled": magic_dns}), "cli"
    )
    assert tailnet.known_as == known_as


@given(ANY_JSON)
def test_status_in_any_form(document):
    """Whatever comes, there are addresses of devices in a tailnet, or a problem with a hint; never both."""
    tailnet = of_status(document, "cli")
    assert all(map(is_device, tailnet.addresses))
    assert bool(tailnet.addresses) is (tailnet.problem is None) is (not tailnet.hint)


# --- interfaces -------------------------------------------------------------------------------------------------------


def utun(number, *lines, flags="UP,POINTOPOINT,RUNNING,MULTICAST", name="utun"):
    """Return what ifconfig prints of an interface."""
    return f"{name}{number}: flags=8051<{flags}> mtu 1280\n" + "".join(f"\t{line}\n" for line in lines)


OWN = f"inet {V4} --> {V4} netmask 0xffffffff"
# Cloudflare WARP's client gives its utun one address of 100.96.0.0/12 (public source: Cloudflare's documentation).
WARP = "inet 100.96.0.17 --> 100.96.0.17 netmask 0xffffffff"
OTHER = "inet 100.90.1.2 --> 100.90.1.2 netmask 0xffffffff"


@pytest.mark.parametrize(
    ("listed", "addresses"),
    [
        pytest.param(MAC, (V4, V6), id="beside_a_carrier_and_another_vpn"),
        pytest.param(utun(4, f"inet6 {V6} prefixlen 128"), (V6,), id="ipv6_alone"),
        pytest.param(utun(4, WARP) + utun(7, OWN, f"inet6 {V6} prefixlen 48"), (V4, V6), id="beside_cloudflare_warp"),
        pytest.param(utun(0, OWN, name="tailscale"), (V4,), id="name_on_linux"),
    ],
)
def test_interfaces_show_the_address(listed, addresses):
    """A point-to-point interface with an address that only Tailscale assigns, or its own name, is Tailscale's."""
    tailnet = of_interfaces(of_ifconfig(listed))
    assert (tailnet.addresses, tailnet.source, tailnet.problem) == (addresses, "interface", None)


@pytest.mark.parametrize(
    ("own", "addresses"),
    [
        pytest.param((V4,), (V4,), id="reported_before"),
        pytest.param((), None, id="never_reported"),
        pytest.param(("100.96.0.17",), None, id="another_was_reported"),
    ],
)
def test_ipv4_alone_shows_nothing_of_tailscale(own, addresses):
    """Other VPNs hold a single address of the range, too: an IPv4 address counts if Tailscale itself reported it."""
    tailnet = of_interfaces(of_ifconfig(utun(4, OWN)), own)
    assert (tailnet and tailnet.addresses) == addresses


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
        pytest.param(utun(4, WARP), id="cloudflare_warp"),
        pytest.param(utun(4, WARP, "inet6 2606:4700:110:8a36::1 prefixlen 128"), id="cloudflare_warp_with_ipv6"),
        pytest.param(utun(4, "inet 10.8.0.6 --> 10.8.0.5 netmask 0xffffffff"), id="another_range"),
        pytest.param(utun(4, OTHER) + utun(7, OWN), id="two_that_could_be"),
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
        pytest.param(
            utun(4, OWN, f"inet6 {V6} prefixlen 48") + utun(7, "inet6 fd7a:115c:a1e0::7 prefixlen 48"),
            f"{V4} (utun4), {V6} (utun4), fd7a:115c:a1e0::7 (utun7)",
            id="two_interfaces",
        ),
        pytest.param(
            utun(4, OWN, OTHER, f"inet6 {V6} prefixlen 48"), f"{V4} (utun4), 100.90.1.2 (utun4)", id="two_on_one"
        ),
    ],
)
def test_interfaces_in_doubt(listed, shown):
    """Where more than one address could be Tailscale's none is taken, and all are named."""
    tailnet = of_interfaces(of_ifconfig(listed))
    assert tailnet.addresses == ()
    assert shown in tailnet.problem
    assert "--listen" in tailnet.hint


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch):
    """Give a folder for a Tailscale of its own, with an empty folder of programs in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # short enough for the address of a Unix socket
        monkeypatch.setenv("FAKE_TAILSCALE", name)
        Path(name, "bin").mkdir()
        yield Path(name)


class Clock:
    """A clock on which the tool's last answer is always old enough for another one."""

    now = 1000.0

    def __call__(self):
        self.now += TOOL_INTERVAL
        return self.now


CLOCK = Clock()


@pytest.fixture
def tailscale(folder):
    """Give a Tailscale that is asked on a Mac with nothing but what is in `folder`."""
    places = Places(
        sockets=(f"{folder}/socket",), app=f"{folder}/app", tools=(), path=f"{folder}/bin", platform="darwin"
    )
    return Tailscale(places, CLOCK)


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
    """Each look returns the current state: before the login, up, at another address, and stopped."""
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
    """If Tailscale's answer can't be understood, its interface shows the address."""
    ifconfig(folder, MAC)
    (folder / "bin/tailscale").write_text(f"#!/bin/sh\necho '{answers}'\n")
    (folder / "bin/tailscale").chmod(0o755)
    seen = await tailscale.look()
    assert (seen.addresses, seen.source, seen.state) == ((V4, V6), "interface", UNKNOWN)
    assert seen.silence
    assert seen.hint


async def test_look_remembers_what_tailscale_reported(folder, tailscale):
    """An IPv4 address that Tailscale itself reported is known again on its interface when Tailscale falls silent."""
    ifconfig(folder, utun(4, WARP) + utun(7, OWN))
    Tailnet(folder).change(ips=[V4])
    assert (await tailscale.look()).addresses == ()
    with tailscaled(folder, folder / "socket"):
        assert (await tailscale.look()).addresses == (V4,)
    assert (await tailscale.look()).addresses == (V4,)


async def test_look_at_nothing(folder, tailscale):
    """If neither Tailscale nor an interface gives an address, the problem says why Tailscale doesn't answer."""
    seen = await tailscale.look()
    assert (seen.addresses, seen.source) == ((), "none")
    assert "Tailscale was not found" in seen.problem
    (folder / "bin/tailscale").symlink_to(FAKES / "tailscale")
    Tailnet(folder).change(cli="dead")
    seen = await tailscale.look()
    assert f"{folder}/bin/tailscale says: failed to connect to local tailscaled" in seen.problem
    assert "open -a Tailscale" in seen.hint


@pytest.mark.parametrize("address", ["100.64.0.7", "fd7a:115c:a1e0::7"])
async def test_who(folder, tailscale, source, address):
    """A peer's device and user are found, for IPv4 and IPv6. For an unassigned address nothing is."""
    laptop = person("laptop", "alice@example.com") | {"CapMap": {CAPABILITY: [{"models": ["tiny"]}]}}
    Tailnet(folder).change(peers={address: laptop})
    who = await tailscale.who(address, 51000, CAPABILITY)
    assert who is not None
    assert (who.device, who.login, who.addresses) == ("laptop", "alice@example.com", (address,))
    assert who.capabilities == {CAPABILITY: ({"models": ["tiny"]},)}
    assert await tailscale.who("100.64.0.8", 51000) is None


async def test_who_from_an_answer_that_names_nobody(folder, tailscale, source):
    """An answer that can't be used is reported as one, and not as a peer that Tailscale doesn't know."""
    Tailnet(folder).change(peers={"100.64.0.7": {"Node": {}}})
    with pytest.raises(UnreadableError):
        await tailscale.who("100.64.0.7", 51000)


@pytest.mark.parametrize(
    ("state", "held", "seconds", "runs"),
    [
        pytest.param("Running", True, 29.9, 1, id="up"),
        pytest.param("Running", True, 30.0, 2, id="up_for_half_a_minute"),
        pytest.param("Stopped", True, 9.9, 1, id="down"),
        pytest.param("Stopped", True, 10.0, 2, id="down_for_ten_seconds"),
        pytest.param("Running", False, 5.0, 2, id="address_went"),
    ],
)
async def test_tool_is_run_seldom(folder, monkeypatch, state, held, seconds, runs):
    """Where only the command answers it runs each half minute, sooner while down, at once if an address goes."""
    (folder / "bin/tailscale").symlink_to(FAKES / "tailscale")
    Tailnet(folder).change(state=state)
    now, there = [100.0], [True]
    monkeypatch.setattr("proxy.tailnet.tailscale.is_held", lambda _: there[0])
    tailscale = Tailscale(Places(sockets=(), tools=(), path=f"{folder}/bin", platform="linux"), lambda: now[0])
    await tailscale.look()
    now[0], there[0] = 100.0 + seconds, held
    await tailscale.look()
    assert len(Tailnet(folder).noted()) == runs


async def test_who_when_tailscale_is_silent(folder, tailscale):
    """That nobody can be asked is another thing than that nobody is known."""
    with pytest.raises(SilentError):
        await tailscale.who("100.64.0.8", 51000)


async def test_serving(folder, tailscale, source):
    """The rules of serve and funnel are found in either way; none if there were none or all were removed."""
    ports = Ports(11434)
    for none in (None, {}):
        Tailnet(folder).change(serve=none)
        assert await tailscale.serving(ports) == Serving()
    Tailnet(folder).change(serve={"TCP": {"443": {"TCPForward": "127.0.0.1:11434"}}})
    problem = "`tailscale serve` leads from its tcp port 443 past this proxy to 127.0.0.1:11434"
    assert (await tailscale.serving(ports)).rules == (Rule(problem, "tailscale serve --tcp=443 off"),)


async def test_serving_when_tailscale_is_silent(tailscale):
    """That the rules can't be read is another thing than that there are none."""
    assert await tailscale.serving(Ports(11434)) is None


@pytest.mark.parametrize("up", [True, False])
async def test_shields(folder, tailscale, source, up):
    """Whether shields are up is read in either way."""
    Tailnet(folder).change(shields=up)
    assert await tailscale.shields_up() is up


async def test_shields_when_tailscale_is_silent(tailscale):
    """Whether shields are up isn't known then."""
    assert await tailscale.shields_up() is None


async def test_hints_can_be_followed(folder, tailscale):
    """Hints about addresses and rules name the command where it is, if it isn't on the PATH."""
    (folder / "Tailscale").symlink_to(FAKES / "tailscale")
    places = Places(sockets=(f"{folder}/socket",), tools=(f"{folder}/Tailscale",), path="", platform="darwin")
    tailscale = Tailscale(places)
    Tailnet(folder).change(state="Stopped", serve={"TCP": {"443": {"TCPForward": "127.0.0.1:11434"}}})
    assert "in the menu of the Tailscale app: Connect" in (await tailscale.look()).hint
    assert (await tailscale.serving(Ports(11434))).rules[0].hint == f"{folder}/Tailscale serve --tcp=443 off"
