"""What the rules of serve and funnel mean for the ports of the proxy and of Ollama."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings.settings import load
from proxy.tailnet.serve_rules import Kind, Ports, of_serve
from tests.fakes.localapi import recorded

# Any JSON, whose objects have the names that are looked for.
NAMES = (
    *("TCP", "Web", "Services", "Foreground", "AllowFunnel", "Handlers", "Proxy", "TCPForward", "TerminateTLS"),
    *("HTTP", "443", "mac.tail1234.ts.net:443", "/"),
)
VALUES = ("127.0.0.1:11434", "http://[::1:11434", "11434", "https://127.0.0.1:11434/\x1b[2J", "svc:a")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(VALUES) | st.text(max_size=9),
    lambda deeper: (
        st.lists(deeper, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=9), deeper, max_size=8)
    ),
    max_leaves=30,
)

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
        pytest.param(web("http://127.1:11434"), "tailscale serve --https=443 off", id="short_address"),
        pytest.param(web("http://2130706433:11434"), "tailscale serve --https=443 off", id="address_as_a_number"),
        pytest.param(web("http://0x7f.0.0.1:11434"), "tailscale serve --https=443 off", id="hexadecimal_address"),
        pytest.param(web("http://[::ffff:127.0.0.1]:11434"), "tailscale serve --https=443 off", id="mapped_address"),
        pytest.param(web("http://ollama.localhost:11434"), "tailscale serve --https=443 off", id="below_localhost"),
        pytest.param(web("http://LocalHost.:11434"), "tailscale serve --https=443 off", id="localhost_with_a_dot"),
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
    (rule,) = of_serve(config, Ports(11434)).rules
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
        pytest.param(web("http://192.11434:11434"), id="short_address_elsewhere"),
        pytest.param(web("http://localhost.example.com:11434"), id="name_elsewhere"),
        pytest.param(web("http://127.1\0:11434"), id="nul"),
        pytest.param(web("http://127.\udc80:11434"), id="no_unicode"),
        pytest.param(web("unix:/var/run/x.sock"), id="socket"),
        pytest.param(web("1" * 9999), id="no_number"),
        pytest.param({"Web": {f"{HOST}:443": {"Handlers": {"/": {"Path": "/srv/11434"}}}}}, id="files"),
        pytest.param({"TCP": {"11434": {"TCPForward": "127.0.0.1:22"}}}, id="served_on_that_port"),
    ],
)
def test_serve_rules_that_lead_elsewhere(config):
    """Rules for other ports and machines are passed over."""
    assert of_serve(config, Ports(11434)).rules == ()


@given(ANY_JSON)
def test_serve_rules_in_any_form(document):
    """Whatever comes, what is found is described in text that steers no terminal."""
    assert all(text.isprintable() for rule in of_serve(document, Ports(11434, 443)).rules for text in rule[:2])


@pytest.mark.parametrize(
    ("name", "hints"),
    [
        pytest.param(
            "serve-config-five-rules.json",
            [
                "tailscale serve --tcp=9000 off",
                "tailscale serve --tls-terminated-tcp=9443 off",
                "tailscale serve --http=80 off",
                "tailscale funnel --https=8080 off",
                "tailscale serve --https=8443 --set-path=/ollama off",
            ],
            id="five_rules",
        ),
        pytest.param("serve-config-service.json", ["tailscale serve --service=svc:ollama --http=80 off"], id="service"),
        pytest.param("serve-config-unix.json", [], id="unix"),
        pytest.param("serve-config-after-reset.json", [], id="after_reset"),
    ],
)
def test_recorded_rules(name, hints):
    """Each rule that a real tailscaled was given is found; its hint, run as it stands, removed the rule there."""
    assert [rule.hint for rule in of_serve(recorded(name), Ports(11434)).rules] == hints


def test_recorded_rule_of_a_terminal():
    """A rule that lives as long as its command is found next to the lasting ones."""
    rules = of_serve(recorded("serve-config-with-foreground.json"), Ports(11434)).rules
    assert [rule.hint for rule in rules][5:] == ["end the `tailscale serve` that runs in a terminal with Ctrl-C"]


# --- the proxy's own port ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "target", "hint"),
    [
        pytest.param(
            {"TCP": {"21500": {"TCPForward": "127.0.0.1:9999"}}},
            *("127.0.0.1:9999", "tailscale serve --tcp=21500 off"),
            id="tcp",
        ),
        pytest.param(web("http://127.0.0.1:3000", 21500), "http://127.0.0.1:3000", "--https=21500 off", id="https"),
        pytest.param(web("3000", 21500, "/", "HTTP"), "3000", "--http=21500 off", id="http"),
        pytest.param(web("unix:/tmp/x.sock", 21500), "unix:/tmp/x.sock", "--https=21500 off", id="unix_socket"),
        pytest.param(
            {"TCP": {"21500": {"HTTPS": True}}, "Web": {f"{HOST}:21500": {"Handlers": {"/": {"Path": "/srv"}}}}},
            *("something else", "--https=21500 off"),
            id="files",
        ),
        pytest.param(
            {"TCP": {"21500": {"HTTPS": True}}, "Web": {f"{HOST}:21500": {"Handlers": {"/": {"Text": "hi"}}}}},
            *("something else", "--https=21500 off"),
            id="text",
        ),
        pytest.param({"Foreground": {"5e": web("3000", 21500)}}, "3000", "with Ctrl-C", id="foreground"),
        pytest.param(
            web("3000", 21500, AllowFunnel={f"{HOST}:21500": True}), "3000", "funnel --https=21500", id="funnel"
        ),
    ],
)
def test_rules_that_take_the_proxys_port(config, target, hint):
    """A rule on the port where the proxy listens gets what devices send to the proxy, whatever it leads to."""
    (rule,) = of_serve(config, Ports(11434, 21500)).rules
    assert rule.kind is Kind.TAKEN
    assert f"port 21500, where this proxy listens, to {target}" in rule.problem
    assert hint in rule.hint


@pytest.mark.parametrize(
    ("config", "ports"),
    [
        pytest.param({"TCP": {"21500": {"TCPForward": "127.0.0.1:9999"}}}, Ports(11434), id="proxy_not_in_the_tailnet"),
        pytest.param({"TCP": {"2150": {"TCPForward": "127.0.0.1:9999"}}}, Ports(11434, 21500), id="another_port"),
        pytest.param({"Services": {"svc:x": web("3000", 21500)}}, Ports(11434, 21500), id="service_at_its_own_address"),
    ],
)
def test_rules_that_leave_the_proxys_port_alone(config, ports):
    """A rule on another port or at another address takes nothing from the proxy."""
    assert of_serve(config, ports).rules == ()


def test_rule_that_takes_the_port_and_leads_past():
    """A rule on the proxy's port that leads to Ollama is reported once, as what is worse: it leads past the proxy."""
    (rule,) = of_serve({"TCP": {"11434": {"TCPForward": "127.0.0.1:11434"}}}, Ports(11434, 11434)).rules
    assert rule.kind is Kind.PAST


@pytest.mark.parametrize(
    ("listen", "own"),
    [
        pytest.param("tailscale", 21500, id="tailscale"),
        pytest.param("100.101.102.103", 21500, id="its_address"),
        pytest.param("0.0.0.0", 21500, id="every_address"),
        pytest.param("127.0.0.1", None, id="loopback"),
        pytest.param("192.168.1.5", None, id="lan"),
    ],
)
def test_ports_of_settings(listen, own):
    """The proxy's port counts if devices of the tailnet reach it there."""
    flags = {"listen": listen, "port": "21500", "upstream": "http://127.0.0.1:7777", "allow_any_address": "true"}
    assert Ports.of(load(flags, {"HOME": "/nowhere"}).settings) == Ports(7777, own, None, 21500)
