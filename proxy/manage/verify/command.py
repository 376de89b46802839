"""Test that a running proxy does what it promises: the machine around it, and its responses.

On the Mac it checks the machine and asks the questions at the proxy's addresses. `--from-client` asks the same
questions from another machine; `--client-script` prints them as one file. Nothing is changed, except that models are
loaded.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.findings.running import Running
from proxy.manage.machine.machine import Machine
from proxy.manage.verify import checks_of_mac as verify_mac
from proxy.manage.verify.asking.asking import Asker
from proxy.manage.verify.asking.report import Report
from proxy.manage.verify.asking.session import Promised, Result, Session
from proxy.manage.verify.client_script import client_script
from proxy.manage.verify.questions.connection import ADDRESSES_QUESTION, CONNECTION_QUESTIONS
from proxy.manage.verify.questions.script import ask_from_client, put_all, questions_of_apis, questions_of_proxy
from proxy.policy.gate import Policy, judge_origin, open_rows
from proxy.policy.routes import ROUTES
from proxy.settings.addresses import TAILSCALE, joined, parse
from proxy.settings.settings import load
from proxy.terminal.console import complain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping

    from proxy.manage.verify.asking.session import Question
    from proxy.settings.settings import Settings
    from proxy.terminal.finding import Finding

_WRONG_USAGE = 2
_STATUS, _PROXY = "Service status", "Proxy"
_BETWEEN = ("Security", "Network")  # groups in which nothing is asked of the proxy


def main(flags: Mapping[str, str], args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    if args.from_client is not None:
        promise = promised(load(flags, os.environ).settings)
        try:
            return ask_from_client(args.from_client, promise, args)
        except ValueError as error:
            complain([str(error)], f"{PROGRAM} verify --from-client http://mac:11434")
            return _WRONG_USAGE
    running = Running(Machine.here(), flags)
    wrong = [str(problem) for problem in running.problems if problem.source.startswith("flag ")]
    if wrong:
        complain(wrong, f"{PROGRAM} verify --help")
        return _WRONG_USAGE
    if args.client_script:
        return _print_script(running)
    return _verify(running, flags, args)


def promised(settings: Settings) -> Promised:
    """Return what a proxy with such settings promises."""
    rows = open_rows(settings.allow)
    policy = Policy.of(allowed_origins=settings.allowed_origins, max_body=settings.max_body)
    strangers = [f"{scheme}://verify.invalid" for scheme in ("https", "http", "verify")]
    return Promised(
        served=tuple((row.method, row.path) for row in rows),
        closed=tuple((row.method, row.path) for row in ROUTES if row not in rows),
        max_body=settings.max_body,
        stranger=next((each for each in strangers if judge_origin(each.encode(), policy) is not None), ""),
    )


# --- for a client -----------------------------------------------------------------------------------------------------


def _print_script(running: Running) -> int:
    if running.loaded is None:
        complain(map(str, running.problems), f"{PROGRAM} --check")
        return _WRONG_USAGE
    print(client_script(promised(running.settings), url_for_clients(running)), end="")
    return 0


def url_for_clients(running: Running) -> str | None:
    """Return where clients find the proxy, by the name that they can resolve if it has one; None if they can't."""
    port = running.settings.port
    if TAILSCALE in running.settings.listen and running.tailnet.addresses and running.tailnet.known_as:
        return f"http://{running.tailnet.known_as}:{port}"
    others = [each for each in running.reachable if not parse(each).is_loopback]
    return f"http://{joined(others[0], port)}" if others else None


# --- on the Mac -------------------------------------------------------------------------------------------------------


def _verify(running: Running, flags: Mapping[str, str], args: argparse.Namespace) -> int:
    """Check the machine, ask the questions in between, and print everything in its groups."""
    report = Report(as_json=args.json, verbose=args.verbose)
    askers = tuple(Asker(address, running.settings.port, PROGRAM) for address in running.reachable)
    found = verify_mac.before(running.machine, flags)
    try:
        _tell(report, found, _STATUS)
        session = _session(running, askers, found, args) if running.loaded and askers else None
        if session:
            also = (ADDRESSES_QUESTION,) if session.also else ()
            _ask(report, session, (*CONNECTION_QUESTIONS, *also), _STATUS)
            _ask(report, session, questions_of_apis())
        for group in _BETWEEN:
            _tell(report, found, group)
        _tell(report, found, _PROXY)
        if session:
            _ask(report, session, questions_of_proxy(session.promised))
        asked = [each for asker in askers for each in asker.asked]
        ids = [each.id for each in asked if each.known]
        _tell(report, verify_mac.after(running.machine, flags, ids), _PROXY)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        report.end()
        return 1
    return report.end(note=_note(running))


def _session(
    running: Running, askers: tuple[Asker, ...], found: Iterable[tuple[str, Finding, float]], args: argparse.Namespace
) -> Session:
    failed = {finding.name for _, finding, _ in found if finding.outcome == "fail"}
    return Session(
        askers[0],
        promised(running.settings),
        direct=Asker(*running.upstream, PROGRAM),
        also=askers[1:],
        wanted=args.model,
        skip_models=args.skip_model_tests,
        skip_anthropic=args.skip_anthropic_tests,
        log=running.settings.access_log,
        told_down=frozenset({"proxy", "Ollama"} & {name.removesuffix(" HTTP") for name in failed}),
    )


def _tell(report: Report, found: Iterable[tuple[str, Finding, float]], group: str) -> None:
    """Print the findings of a group."""
    for title, each, seconds in found:
        if title == group:
            report.add(Result(group, each.name, str(each.outcome), each.detail, each.hint, seconds))


def _ask(report: Report, session: Session, questions: Iterable[Question], group: str = "") -> None:
    """Ask questions, and print the results, in their own group or in another."""
    for result, talk in put_all(session, questions, report.asking):
        report.add(replace(result, group=group or result.group), talk)


def _note(running: Running) -> str:
    """Return what a run on the Mac itself can't prove, and what to do next."""
    url = url_for_clients(running)
    if not running.reachable:
        return ""
    if url is None:
        return "The proxy listens on loopback only: no other device can ask it anything."
    return (
        "All of this was asked on the machine itself, and passes even if the tailnet's policy keeps everybody else\n"
        "out. To ask from a device that is to use it, which needs only Python for that:\n"
        f"  {PROGRAM} verify --client-script > check.py\n"
        "  scp check.py LAPTOP:\n"
        f"  ssh LAPTOP python3 check.py {url}"
    )
