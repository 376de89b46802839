"""Turn a finished exchange into a line of JSON, and write such lines to the access log.

docs/access-log.md explains each key. Never logged: a query, a prompt, an answer, a credential, or any field of the
client's except Host, User-Agent and a plain X-Request-Id.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from proxy.logs.logfile import KEPT, MAX_SIZE, Backlog, LogFile, json_line, utc
from proxy.logs.stdio import Stream
from proxy.policy.heads import Preflight
from proxy.policy.reasons import AFTER_ADMISSION
from proxy.policy.refusals import Reason, Refusal
from proxy.policy.replies import surface_of
from proxy.policy.routes import Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.message.exchange import Party, Phase, Record
    from proxy.logs.logfile import Diagnose
    from proxy.policy.gate import Verdict
    from proxy.policy.heads import RequestHead

KEYS = (
    *("time", "run", "seq", "id", "peer", "peer_port", "host", "method", "path", "user_agent"),
    *("route", "verdict", "surface"),
    *("reason", "device", "user", "status", "ended", "model", "stream", "bytes_in", "bytes_out"),
    *("first_byte_ms", "total_ms", "tokens_in", "tokens_out", "events", "upstream_status", "waited_ms", "pings"),
    *("context_full", "dropped", "egress", "after"),
)
"""Every key that an access line may have. A key with an unknown value is absent."""

TEXT_LIMIT = 256
"""Characters of an outside text that go into a line: enough to recognise it, and a bound for the line."""

# Bytes of a field's value that are read: enough for that many characters. Of a Host, the last ones, because an `@`
# further ahead doesn't concern them.
_OCTETS = 4 * TEXT_LIMIT

_STANDARD_OUTPUT = 1

_TAIL = 2**16  # bytes at the end of an earlier log: more than two of the longest lines

GATHER = 0.002
"""Seconds for which exchanges are gathered under load: lines made one after the other take a third of the time that
they take between requests, when the processor's caches are full of other things, and are written in one go."""

MANY = 3
"""Exchanges of one turn of the loop, or of a gathering, that are load. With fewer, a timer costs more than it saves."""


def line(over: Record, run: str, seq: int, after: str = "") -> bytes:  # noqa: C901 - flat, for pieces would cost calls
    """Return the line of a finished exchange, number `seq` of its run."""
    # Unpacked at once, for on CPython 3.13 each look at a field of a named tuple takes 210 instructions.
    identity, peer, peer_port, arrived, ended, arrived_at, head, verdict, phase, status, ended_by, reason = over[:12]
    first_octet, request_octets, response_octets, stream, model, tokens_in, tokens_out, events, who = over[12:21]
    upstream_status, waited, pings, context_full, dropped, egress = over[21:]
    at, own = utc(arrived_at), identity[:TEXT_LIMIT]
    record: dict[str, Any] = {"time": at, "run": run, "seq": seq, "id": own, "peer": peer}
    if peer_port:  # `tailscale serve` gives none
        record["peer_port"] = peer_port
    if head is not None:
        _asked(record, head)
    _judged(record, head, verdict)
    if reason is not None:
        record.setdefault("reason", reason)
        if reason in AFTER_ADMISSION:
            record["verdict"] = "refused"
    if who is not None:
        if who.device is not None:
            record["device"] = who.device[:TEXT_LIMIT]
        if who.user is not None:
            record["user"] = who.user[:TEXT_LIMIT]
    if status is not None:
        record["status"] = status
    record["ended"] = "complete" if ended_by is None else _ended(ended_by, phase, reason)
    if model is not None:
        record["model"] = model[:TEXT_LIMIT]
    if stream is not None:
        record["stream"] = stream
    record["bytes_in"] = request_octets
    record["bytes_out"] = response_octets
    if first_octet is not None:  # rounded by int(), at a third of what round() costs
        record["first_byte_ms"] = int((first_octet - arrived) * 1e6 + 0.5) / 1e3
    record["total_ms"] = int((ended - arrived) * 1e6 + 0.5) / 1e3
    if tokens_in is not None:
        record["tokens_in"] = tokens_in
    if tokens_out is not None:
        record["tokens_out"] = tokens_out
    if events is not None:
        record["events"] = events
    if upstream_status != status and upstream_status is not None:
        record["upstream_status"] = upstream_status
    if waited is not None:
        record["waited_ms"] = int(waited * 1e6 + 0.5) / 1e3
    if pings:
        record["pings"] = pings
    if context_full:
        record["context_full"] = True
    if dropped:
        record["dropped"] = dropped
    if egress:
        record["egress"] = True
    if after:
        record["after"] = after
    return json_line(record)


def _ended(by: Party, phase: Phase, reason: str | None) -> str:
    """Return who ended an exchange early, and in which phase. The owner does so in any phase."""
    return "cancelled" if reason == Reason.CANCELLED else f"{by}/{phase}"


def _asked(record: dict[str, Any], head: RequestHead) -> None:
    """Put the request's facts into `record`. Anything before an `@` may be a password, and is left out."""
    read, path = head.read, head.path
    host, agent = read.get(b"host"), read.get(b"user-agent")
    if host is not None:
        record["host"] = host[-_OCTETS:].rpartition(b"@")[2].decode("utf-8", "backslashreplace")[:TEXT_LIMIT]
    record["method"] = head.method[:TEXT_LIMIT]
    record["path"] = (path if path[:1] == "/" else path.rpartition("@")[2])[:TEXT_LIMIT]
    if agent is not None:
        record["user_agent"] = agent[:_OCTETS].decode("utf-8", "backslashreplace")[:TEXT_LIMIT]


def _judged(record: dict[str, Any], head: RequestHead | None, verdict: Verdict | None) -> None:
    """Put the gate's verdict into `record`, and the API that it is about."""
    if isinstance(verdict, Route):
        record["route"] = verdict.name
        record["verdict"] = "allowed"
        record["surface"] = verdict.surface
        return
    if verdict is not None:
        record["verdict"] = "preflight" if isinstance(verdict, Preflight) else verdict.verdict
    if head is not None:
        record["surface"] = surface_of(head.path)
    if isinstance(verdict, Refusal):
        record["reason"] = verdict.reason


class AuditLog(Backlog):
    """The access log: takes exchanges that are over, and writes their lines together where they come close together.

    A line is written when the turn of the event loop ends or, where turns bring many, `GATHER` seconds later; a
    SIGKILL loses what isn't written. It never raises while serving and never waits: lines that can't be written wait in
    memory.

    The lines of a run, which lasts from a start of the process to its end, are numbered in the order of the file,
    without a hole: a gap line stands for the numbers of the lines that are lost. So `logs --verify` finds any other
    hole. The first line also names the last one that was there at the start.
    """

    def __init__(
        self,
        path: str,
        diagnose: Diagnose,
        *,
        max_size: int = MAX_SIZE,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to the file `path`, or to standard output for `-`; `diagnose` gets trouble with it."""
        sink = Stream(_STANDARD_OUTPUT) if path == "-" else LogFile(path, diagnose, max_size=max_size, kept=kept)
        super().__init__(sink, self._stand_in, diagnose, clock)
        self._path = path
        self._run = secrets.token_hex(4)
        self._seq = 0  # the last number that was given to a line, or to a lost one
        self._after = ""  # until a line names it
        self._taken: list[Record] = []  # since the last flush, which the first of them asks for
        self._many = False  # that one had many

    def __repr__(self) -> str:
        """Show where it writes and what waits."""
        return f"<AuditLog {self._sink} {self._run}/{self._seq} {super().__repr__()}>"

    def open(self) -> None:
        """Make the log ready. OSError, with a text to show, when it can't be written."""
        super().open()
        self._after = "" if self._path == "-" else _last_line(self._path)

    def write(self, record: Record) -> None:
        """Take a finished exchange; its line is written at the end of this turn of the event loop, or after `GATHER`.

        The exchange must not change afterwards.
        """
        if not self._taken:
            loop = asyncio.get_running_loop()
            if self._many:
                loop.call_later(GATHER, self.flush)
            else:
                loop.call_soon(self.flush)
        self._taken.append(record)

    def flush(self) -> None:
        """Write the lines of all exchanges that were taken so far."""
        taken, self._taken = self._taken, []
        for record in taken:
            self._seq += 1
            try:
                made = line(record, self._run, self._seq, self._after)
            except Exception:  # whatever it is: the others have lines too
                self._diagnose("internal", exc_info=True)
                self.lose()
            else:
                self.add(made)
                self._after = ""
        self._many = len(taken) >= MANY
        super().flush()

    def _stand_in(self, lost: int) -> bytes:
        """Return the line that stands in for the last `lost` lines that were numbered."""
        gap = {"time": utc(time.time()), "run": self._run, "seq": self._seq + 1 - lost, "audit_gap": lost}
        return json_line(gap)


def _last_line(path: str) -> str:
    """Return run and number of the last numbered line of a file, as `5d1c9a0e/42`; nothing if there is none."""
    with suppress(OSError), open(path, "rb") as log:
        log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL))
        for each in reversed(log.read().splitlines()):
            with suppress(ValueError, KeyError, TypeError):
                record = orjson.loads(each)
                return f"{record['run'][:TEXT_LIMIT]}/{record['seq'] + record.get('audit_gap', 1) - 1}"
    return ""
