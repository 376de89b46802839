"""What a client asks, in order, and the program that asks it: what `verify --client-script` prints begins here."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from proxy.manage.verify.asking.asking import Asker
from proxy.manage.verify.asking.report import Report
from proxy.manage.verify.asking.secure import HTTPS_PORT
from proxy.manage.verify.asking.session import Session
from proxy.manage.verify.questions.anthropic import ANTHROPIC_QUESTIONS
from proxy.manage.verify.questions.connection import CONNECTION_QUESTIONS
from proxy.manage.verify.questions.gaps import GAPS_QUESTIONS
from proxy.manage.verify.questions.guards import GUARDS_QUESTIONS
from proxy.manage.verify.questions.leaving import LEAVING_QUESTIONS
from proxy.manage.verify.questions.openai import OPENAI_QUESTIONS
from proxy.manage.verify.questions.reach import OLLAMA_PORT, REACH_QUESTIONS
from proxy.manage.verify.questions.rules import rule_questions
from proxy.manage.verify.questions.table import BLOCKED_QUESTIONS, DETOUR_QUESTIONS, served_questions
from proxy.manage.verify.questions.way import WAY_QUESTIONS
from proxy.terminal.output import written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from proxy.manage.verify.asking.session import Promised, Question, Result

NOTE = (
    "Asked from this machine. What is around the proxy (its services, files, firewall, logs) is looked at by\n"
    "`remote-ollama-proxy verify` on the Mac."
)


def questions_of_apis() -> tuple[Question, ...]:
    """Return the questions about the two APIs."""
    return (*OPENAI_QUESTIONS, *GAPS_QUESTIONS, *ANTHROPIC_QUESTIONS)


def questions_of_proxy(promised: Promised) -> tuple[Question, ...]:
    """Return the questions about the proxy itself."""
    return (
        *served_questions(promised),
        *rule_questions(promised),
        *BLOCKED_QUESTIONS,
        *DETOUR_QUESTIONS,
        *GUARDS_QUESTIONS,
        *LEAVING_QUESTIONS,
    )


def put_all(
    session: Session, questions: Iterable[Question], before: Callable[[str], object] = len
) -> Iterator[tuple[Result, list[str]]]:
    """Ask the questions, and yield each result as it comes, with its conversation; `before` gets the next question."""
    askers = (*session.askers, *((session.direct,) if session.direct else ()))
    for question in questions:
        before(question.name)
        result = session.put(question)
        yield result, [line for asker in askers for line in asker.talk]
        for asker in askers:
            asker.talk.clear()


def place_of(url: str) -> tuple[str, int, bool]:
    """Return host and port of the URL of a proxy, and whether it is https. ValueError says what is wrong with it."""
    written = url if "://" in url else f"http://{url}"
    parts = urlsplit(written)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError(f"{url} is not a URL of the form http://mac:{OLLAMA_PORT}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{url}: give only host and port, as in {parts.scheme}://{parts.netloc}")
    secure = parts.scheme == "https"
    return parts.hostname, parts.port or (HTTPS_PORT if secure else OLLAMA_PORT), secure


def ask_from_client(url: str, promised: Promised, options: Any, program: str = "remote-ollama-proxy") -> Report:
    """Ask the proxy at `url` what a client can, and print it. ValueError when the URL makes no sense.

    `options` has `model`, `skip_anthropic_tests`, `skip_model_tests`, `verbose` and `json`.
    """
    host, port, secure = place_of(url)
    session = Session(
        Asker(host, port, program, away=True, secure=secure),
        promised,
        wanted=options.model,
        skip_models=options.skip_model_tests,
        skip_anthropic=options.skip_anthropic_tests,
    )
    report = Report(as_json=options.json, verbose=options.verbose)
    asks = (
        *CONNECTION_QUESTIONS,
        *WAY_QUESTIONS,
        *questions_of_apis(),
        *questions_of_proxy(promised),
        *REACH_QUESTIONS,
    )
    try:
        for result, talk in put_all(session, asks, report.asking):
            report.add(result, talk)
    except KeyboardInterrupt:
        report.interrupted()
    else:
        report.end(session.asker.asked, NOTE)
    return report


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print what is wrong with the usage, and exit 2."""
        print(f"error: {message}\nhint: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(argv: Sequence[str] | None, promised: Promised, url: str | None = None) -> int:
    """Run as a program of its own; `url` is where the proxy is unless an argument says otherwise."""
    return written(lambda: _run(argv, promised, url))


def _run(argv: Sequence[str] | None, promised: Promised, url: str | None) -> int:
    parser = _Parser(description="Test from here whether a remote-ollama-proxy does what it promises.")
    where = f"where the proxy is (default: {url})" if url else f"where the proxy is, as in http://mac:{OLLAMA_PORT}"
    parser.add_argument("url", nargs="?" if url else None, default=url, metavar="URL", help=where)
    parser.add_argument("--model", metavar="NAME", help="the model to use (default: the smallest)")
    parser.add_argument("--skip-anthropic-tests", action="store_true", help="leave out /v1/messages")
    parser.add_argument("--skip-model-tests", action="store_true", help="leave out tests that a model must answer")
    parser.add_argument("--verbose", action="store_true", help="show each request and its response")
    parser.add_argument("--json", action="store_true", help="one array of results")
    options = parser.parse_args(argv)
    try:
        report = ask_from_client(options.url, promised, options)
    except ValueError as error:
        parser.error(str(error))
    if options.json:
        print(json.dumps([asdict(result) for result in report.results], indent=2))
    return int(report.failed)
