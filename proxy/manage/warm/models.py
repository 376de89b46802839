"""Warm models, one after the other: pull, load, and at the end report what is in memory and until when.

A failure stops no other model. Ollama is asked at the end, because the last load may have pushed out the first.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.filesize import decimal

from proxy import PROGRAM
from proxy.manage.ollama.api import Loaded, OllamaError, UnreachableError
from proxy.manage.warm import hints as warm_hints
from proxy.manage.warm.progress import duration
from proxy.reading.names import is_cloud
from proxy.terminal.finding import Finding, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from proxy.manage.ollama.api import Listed, Ollama
    from proxy.manage.warm.progress import Bars, Lines

FOR_EVER = -1.0
"""Ollama's word for a model that is to stay until something else needs its place."""

YEARS = timedelta(days=3650)
"""An expiry later than this is forever: Ollama then says 292 years."""

_UNLOADED = (
    "fewer models at once; or, if there is memory for them, more OLLAMA_MAX_LOADED_MODELS under [ollama_env] in "
    f"config.toml, then {PROGRAM} install"
)
_NO_GPU = "a smaller model or less OLLAMA_CONTEXT_LENGTH would fit; `ollama ps` shows what else is loaded"


class _Failed(Exception):  # noqa: N818 - how a model fared
    """A model can't be warmed; `hint` is what helps."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


@dataclass(slots=True)
class _Model:
    """How one model fares."""

    name: str
    doing: str = ""  # its current step
    pulled: int | None = None  # bytes, if it was pulled
    was_loaded: bool = False
    seconds: float = 0.0  # that its load took
    loaded_at: float | None = None
    entry: str | None = None  # the name that /api/ps has it by
    failure: _Failed | None = None


class Warming:
    """Some models that are warmed. `log` and `start` are commands that show Ollama's log, and start it."""

    def __init__(
        self,
        ollama: Ollama,
        keep_alive: float,
        display: Bars | Lines,
        say: Callable[[str], None],
        *,
        log: str,
        start: str,
    ) -> None:
        self._ollama, self._keep_alive, self._display, self._say = ollama, keep_alive, display, say
        self._log, self._start = log, start
        self._models: list[_Model] = []
        self._interrupted = False

    @property
    def pulled(self) -> int:
        """How many models were pulled."""
        return sum(model.pulled is not None for model in self._models)

    def one(self, name: str) -> None:
        """Warm a model. It raises nothing: how it went is among the findings."""
        model = _Model(name)
        self._models.append(model)
        try:
            if self._interrupted:
                raise _Failed("not begun", f"{PROGRAM} warm {name}")
            self._warm(model)
        except _Failed as failure:
            model.failure = failure
        except UnreachableError as error:
            model.failure = _Failed(str(error), self._start)
        except OllamaError as error:
            helps = warm_hints.for_pull if model.doing == "pull" else warm_hints.for_load
            what = {"pull": "not pulled: ", "load": "not loaded: "}.get(model.doing, "")
            model.failure = _Failed(f"{what}{error}", helps(str(error), name, self._log))
        except KeyboardInterrupt:
            self._interrupted = True
            kept = {
                "pull": ": Ollama keeps the downloaded part, and continues from there",
                "load": ", and with it the load",
            }
            model.failure = _Failed(f"interrupted{kept.get(model.doing, '')}", f"{PROGRAM} warm {name}")
        if model.failure is not None:
            self._say(f"{name}: failed: {model.failure}")

    def _warm(self, model: _Model) -> None:
        if is_cloud(model.name):
            raise _Failed("it runs at ollama.com, not on this machine: there is nothing to load here", "ollama list")
        listed = self._listed(model)
        if listed is None:
            self._pull(model)
            listed = self._listed(model)
        if listed is not None and listed.elsewhere:
            text = f"it runs at {listed.elsewhere}, not on this machine: there is nothing to load here"
            raise _Failed(text, "ollama list")
        self._load(model, listed)

    def _listed(self, model: _Model) -> Listed | None:
        return self._ollama.listed().get(model.name.lower())

    def _pull(self, model: _Model) -> None:
        begun, total = time.monotonic(), 0
        model.doing = "pull"
        with self._display.pulling(model.name) as report, closing(self._ollama.pull(model.name)) as pull:
            for now in pull:
                total = now.total
                report(now)
        model.doing, model.pulled = "", total
        self._say(f"{model.name}: pulled {decimal(total)} in {duration(time.monotonic() - begun)}")

    def _load(self, model: _Model, listed: Listed | None) -> None:
        begun = time.monotonic()
        model.doing = "load"
        digest = listed.digest if listed else ""
        abilities = listed.abilities if listed else None
        embeds = abilities is not None and "embedding" in abilities and "completion" not in abilities
        model.was_loaded = _entry(self._ollama.loaded(), model.name, digest) is not None
        with self._display.loading(model.name) as silent:
            try:
                self._ollama.load(model.name, self._keep_alive, embeds=embeds, silent=silent)
            except OllamaError as error:  # this Ollama doesn't report what its models are for
                if abilities is not None or "does not support generate" not in str(error):
                    raise
                self._ollama.load(model.name, self._keep_alive, embeds=True, silent=silent)
        model.loaded_at = time.monotonic()
        model.seconds = model.loaded_at - begun
        model.entry = _entry(self._ollama.loaded(), model.name, digest)
        if not model.was_loaded:
            self._say(f"{model.name}: loaded in {duration(model.seconds)}")

    # --- how it went --------------------------------------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Yield how each model fared, by what Ollama has in memory now."""
        loaded: Mapping[str, Loaded] | None
        try:
            loaded = self._ollama.loaded()
        except OllamaError:
            loaded = None
        for model in self._models:
            if model.failure is not None:
                yield Finding(model.name, Outcome.FAIL, str(model.failure), model.failure.hint)
            elif loaded is None:
                text = "was loaded, but Ollama doesn't answer any more, so nothing is loaded now"
                yield Finding(model.name, Outcome.FAIL, text, self._start)
            else:
                yield self._finding(model, loaded)

    def _finding(self, model: _Model, loaded: Mapping[str, Loaded]) -> Finding:
        came = "was loaded already" if model.was_loaded else f"loaded in {duration(model.seconds)}"
        if model.pulled is not None:
            came = f"pulled ({decimal(model.pulled)}), {came}"
        if model.entry is None:
            text = f"{came}; listed under no name of its own: it shares the weights of another that is loaded"
            return Finding(model.name, Outcome.PASS, text)
        if (entry := loaded.get(model.entry)) is None:
            return self._gone(model, came)
        context = f"; context {entry.context}" if entry.context else ""
        text = f"{came}; stays {stay(entry.until)}; {decimal(entry.size)}"
        if entry.in_gpu >= entry.size:
            return Finding(model.name, Outcome.PASS, f"{text}, all of it in GPU memory{context}")
        share = f"{100 - 100 * entry.in_gpu // entry.size} %" if entry.in_gpu else "all"
        return Finding(model.name, Outcome.WARN, f"{text}, {share} of it on the CPU, which is slow{context}", _NO_GPU)

    def _gone(self, model: _Model, came: str) -> Finding:
        """Return why a loaded model isn't there any more."""
        passed = time.monotonic() - (model.loaded_at or 0.0)
        if 0 < self._keep_alive <= passed:
            text = f"{came}, and is unloaded again: its {duration(self._keep_alive)} are over"
            return Finding(model.name, Outcome.WARN, text, f"{PROGRAM} warm {model.name}")
        return Finding(model.name, Outcome.FAIL, f"{came}, and is unloaded again: another took its place", _UNLOADED)


def _entry(loaded: Mapping[str, Loaded], name: str, digest: str) -> str | None:
    """Return the name that a model is loaded by: its own, or another name of the very same."""
    if name.lower() in loaded:
        return name.lower()
    return next((each for each, entry in loaded.items() if digest and entry.digest == digest), None)


def stay(until: datetime | None, now: datetime | None = None) -> str:
    """Return until when a model stays, in local time and in how long."""
    now = now or datetime.now(UTC)
    if until is None:
        return "for a while"
    if until - now > YEARS:
        return "forever"
    local = until.astimezone()
    day = "" if local.date() == now.astimezone().date() else f"{local:%Y-%m-%d} "
    left = max(0.0, (until - now).total_seconds())
    return f"until {day}{local:%H:%M} (in {duration(left if left < 60 else round(left / 60) * 60)})"
