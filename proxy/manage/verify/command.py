"""Test that a running proxy does what it promises: the machine around it, and its responses.

On the Mac it checks the machine, and asks the questions in `questions/` at the addresses where the proxy listens.
`--from-client` asks the same questions from another machine; `--client-script` prints them as one file. It changes
nothing, except that models are loaded.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from proxy import PROGRAM
from proxy.manage.facts.facts import Facts
from proxy.manage.findings.table import NETWORK, PROXY, SECURITY, SERVICES, When, timed
from proxy.manage.machine.live_client import Live, LiveError
from proxy.manage.machine.services import settings_environ
from proxy.manage.verify.access_log import access_log
from proxy.manage.verify.asking.asking import Asker
from proxy.manage.verify.asking.report import Report
from proxy.manage.verify.asking.session import Left, Promised, Ruled, Session
from proxy.manage.verify.asking.session import Result as Asked
from proxy.manage.verify.client_script import client_script
from proxy.manage.verify.questions.connection import ADDRESSES_QUESTION, CONNECTION_QUESTIONS
from proxy.manage.verify.questions.script import ask_from_client, put_all, questions_of_apis, questions_of_proxy
from proxy.policy.gate import Policy, judge_origin, open_rows
from proxy.policy.routes import OPT_IN, ROUTES
from proxy.reading.names import ModelPattern
from proxy.serving.listener import access_of
from proxy.settings.addresses import TAILSCALE, joined, parse
from proxy.settings.settings import load
from proxy.terminal.result import CommandError, Exit, Result

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping
    from typing import Any

    from proxy.manage.machine.machine import Machine
    from proxy.manage.verify.asking.session import Question
    from proxy.settings.settings import Settings
    from proxy.terminal.finding import Finding
    from proxy.terminal.printer import Printer

_BETWEEN = (SECURITY, NETWORK)  # groups in which nothing is asked of the proxy


def run(flags: Mapping[str, str], args: argparse.Namespace, machine: Machine, out: Printer) -> Result:
    """Ask everything, here or from a client, or print the script that does so."""
    if args.from_client is not None:
        promise = promised(load(flags, os.environ).settings)
        try:
            return _result(ask_from_client(args.from_client, promise, args))
        except ValueError as error:
            raise CommandError(str(error), f"{PROGRAM} verify --from-client http://mac:11434", Exit.WRONG) from error
    facts = Facts.of_services(machine, flags)
    wrong = tuple(str(problem) for problem in facts.problems if problem.source.startswith("flag "))
    if wrong:
        return Result(Exit.WRONG, None, wrong, f"{PROGRAM} verify --help")
    if args.client_script:
        return _print_script(facts, out)
    return _result(_verify(facts, args))


def _result(report: Report) -> Result:
    return Result(Exit.FAILED if report.failed else Exit.WELL, report.results)


def promised(settings: Settings) -> Promised:
    """Return what a proxy with such settings promises."""
    rows = open_rows(settings.allow)
    policy = Policy.of(allowed_origins=settings.allowed_origins, max_body=settings.max_body)
    for_some = {row for rule in settings.access for row in rule.also}  # it depends on the device whether they are open
    if settings.capability is not None and settings.capability_may_open_rows:
        for_some |= set(OPT_IN)
    strangers = [f"{scheme}://verify.invalid" for scheme in ("https", "http", "verify")]
    return Promised(
        served=tuple((row.method, row.path) for row in rows),
        closed=tuple((row.method, row.path) for row in ROUTES if row not in rows and row.name not in for_some),
        max_body=settings.max_body,
        local_only=settings.local_only,
        stranger=next((each for each in strangers if judge_origin(each.encode(), policy) is not None), ""),
        ruled=bool(settings.access) or settings.capability is not None,
        rules=tuple(
            Ruled(
                each.number, tuple(ModelPattern(name).completed for name in rule.models), _rows(rule.also), each.behind
            )
            for rule, each in zip(settings.access, access_of(settings, policy).judged(()), strict=True)
        ),
        for_some=_rows(sorted(for_some)),
    )


def _rows(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    rows = (OPT_IN[name] for name in names)
    return tuple((row.method, row.path) for row in rows)


# --- for a client -----------------------------------------------------------------------------------------------------


def _print_script(facts: Facts, out: Printer) -> Result:
    if facts.loaded is None:
        return Result(Exit.WRONG, None, tuple(map(str, facts.problems)), f"{PROGRAM} --check")
    script = client_script(promised(facts.settings), url_for_clients(facts))
    out.text(script)
    return Result(data={"script": script})


def url_for_clients(facts: Facts) -> str | None:
    """Return where clients find the proxy, by the name that they can resolve if it has one; None if they can't."""
    port = facts.settings.port
    if TAILSCALE in facts.settings.listen and facts.tailscale.tailnet.addresses and facts.tailscale.tailnet.known_as:
        return f"http://{facts.tailscale.tailnet.known_as}:{port}"
    others = [each for each in facts.reachable if not parse(each).is_loopback]
    return f"http://{joined(others[0], port)}" if others else None


# --- on the Mac -------------------------------------------------------------------------------------------------------


def _verify(facts: Facts, args: argparse.Namespace) -> Report:
    """Check the machine, ask the questions in between, and print everything in its groups."""
    report = Report(as_json=args.json, verbose=args.verbose)
    askers = tuple(Asker(address, facts.settings.port, PROGRAM) for address in facts.reachable)
    found = list(timed(facts, When.VERIFY))
    try:
        _add(report, found, SERVICES)
        session = _session(facts, askers, found, args) if facts.loaded and askers else None
        if session:
            also = (ADDRESSES_QUESTION,) if session.also else ()
            _ask(report, session, (*CONNECTION_QUESTIONS, *also), SERVICES)
            _ask(report, session, questions_of_apis())
        for group in _BETWEEN:
            _add(report, found, group)
        _add(report, found, PROXY)
        if session:
            _ask(report, session, questions_of_proxy(session.promised))
        asked = [each for asker in askers for each in asker.asked]
        ids = [each.id for each in asked if each.known]
        begun = time.perf_counter()
        for each in access_log(facts.settings.access_log, ids):
            report.add(_asked(PROXY, each, time.perf_counter() - begun))
            begun = time.perf_counter()
    except KeyboardInterrupt:
        report.interrupted()
    else:
        report.end(note=_note(facts))
    return report


def _session(
    facts: Facts, askers: tuple[Asker, ...], found: Iterable[tuple[str, Finding, float]], args: argparse.Namespace
) -> Session:
    failed = {finding.name for _, finding, _ in found if finding.outcome == "fail"}
    session = Session(
        askers[0],
        promised(facts.settings),
        direct=Asker(*facts.upstream, PROGRAM),
        also=askers[1:],
        wanted=args.model,
        skip_models=args.skip_model_tests,
        skip_anthropic=args.skip_anthropic_tests,
        log=facts.settings.access_log,
        known_down=frozenset({"proxy", "Ollama"} & {name.removesuffix(" HTTP") for name in failed}),
    )
    session.judge = partial(_judge, Live(facts.settings.port, settings_environ(facts.machine)))
    return session


def _judge(live: Live, models: list[str]) -> list[dict[str, Any]]:
    """Return what the running proxy says about its access rules; raise Left if it doesn't say anything."""
    try:
        return live.judge(models)
    except LiveError as error:
        raise Left(f"this device can't try it, and {error}", error.hint) from None


def _add(report: Report, found: Iterable[tuple[str, Finding, float]], group: str) -> None:
    """Print the findings of a group."""
    for title, each, seconds in found:
        if title == group:
            report.add(_asked(group, each, seconds))


def _asked(group: str, finding: Finding, seconds: float) -> Asked:
    return Asked(group, finding.name, str(finding.outcome), finding.detail, finding.hint, seconds)


def _ask(report: Report, session: Session, questions: Iterable[Question], group: str = "") -> None:
    """Ask questions, and print the results, in their own group or in another."""
    for result, talk in put_all(session, questions, report.asking):
        report.add(replace(result, group=group or result.group), talk)


def _note(facts: Facts) -> str:
    """Return what a run on the Mac itself can't prove, and how to go on."""
    url = url_for_clients(facts)
    if not facts.reachable:
        return ""
    if url is None:
        return "The proxy listens on loopback only, so no other device can reach it."
    return (
        "All of this was asked on the machine itself, and passes even if the tailnet's policy keeps everybody else\n"
        "out. To ask from a device that is to use it, which needs only Python for that:\n"
        f"  {PROGRAM} verify --client-script > check.py\n"
        "  scp check.py LAPTOP:\n"
        f"  ssh LAPTOP python3 check.py {url}"
    )
