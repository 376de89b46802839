"""Judge what a request asks for before it waits: may its asker have that model, and does it stay on the Mac?

`policy.models` has the rules. Here Ollama is asked what they must know: which of its models only stand for one that
runs elsewhere, and whether its cloud is off. What Ollama doesn't say is refused, and without an Ollama the request
fails as it would on its way.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import orjson

from proxy.event_loop.patience import within
from proxy.exchange.message.exchange import Party, Stop
from proxy.exchange.message.failures import ClosedEarly, UpstreamFailure
from proxy.exchange.waiting.catalog import plain_form
from proxy.policy.models import (
    PACKED,
    Cloud,
    judge_model,
    judge_name,
    judge_search,
    may_leave,
    named_in,
    place_unknown,
    remote_model,
)
from proxy.policy.routes import Route
from proxy.reading.asked import Asked, Naming

if TYPE_CHECKING:
    from proxy.exchange.message.exchange import Exchange
    from proxy.exchange.upstream.asking import Response
    from proxy.exchange.waiting.catalog import Model
    from proxy.exchange.waiting.loads import Loads
    from proxy.policy.access import Rule
    from proxy.policy.refusals import Refusal

CLOUD_EACH = 60.0
"""Seconds after which Ollama is asked again whether its cloud is off."""

CLOUD_WITHIN = 5.0
"""Seconds that this may take, if no request waits for it."""

_NO_SUCH_MODEL = frozenset({400, 404})


class Judge:
    """Judges requests by the models that they name, and knows whether Ollama's cloud is off."""

    def __init__(self, loads: Loads, *, local_only: bool) -> None:
        self.local_only = local_only  # a reload replaces it
        self._loads = loads
        self._cloud = Cloud.UNKNOWN
        self._said_at = self._asked_at = -inf
        self._look: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Judge {'local_only' if self.local_only else 'open'}, cloud {self._cloud}>"

    async def judge(self, exchange: Exchange, asked: Asked) -> None:
        """Return if a request may go to Ollama. Raises CancelledError if it is refused.

        Ollama isn't asked about a model that it has listed in the last seconds. Raises UpstreamFailure if it can't be
        asked.
        """
        refusal = await self._refusal(asked, exchange.rule)
        if refusal is not None:
            raise asyncio.CancelledError(Stop(Party.PROXY, refusal.reason, refusal))
        exchange.egress = not self.local_only and await self._may_leave(exchange, asked)

    def judge_unread(self, exchange: Exchange) -> None:
        """Return if a request may go to Ollama whose body can't be read. Raises CancelledError if it is refused."""
        if self.local_only or exchange.rule is not None:
            raise asyncio.CancelledError(Stop(Party.PROXY, PACKED.reason, PACKED))
        exchange.egress = True  # whatever it names

    async def _refusal(self, asked: Asked, rule: Rule | None) -> Refusal | None:
        """Return why a request is refused; None if it isn't."""
        local_only = self.local_only
        refusal = judge_model(asked, rule, local_only=local_only)
        if refusal is None and local_only:
            if asked.model is not None:
                refusal = await self._judge_place(asked.model)
            if refusal is None and asked.web_search:
                refusal = judge_search(await self._cloud_now())
        return refusal

    async def _may_leave(self, exchange: Exchange, asked: Asked) -> bool:
        """Return whether a request that passes may leave the Mac. If it isn't known, it may.

        Ollama itself describes a model that only stands for one elsewhere.
        """
        if asked.web_search:
            with suppress(UpstreamFailure):
                await self._cloud_now()
        route, loads = exchange.verdict, self._loads
        described = isinstance(route, Route) and not route.needs_model
        known = described or loads.young(monotonic()) or await loads.know()
        listed = None if asked.model is None else self._listed(asked.model)
        return may_leave(asked, self.cloud(monotonic()), remote=not known if listed is None else listed.remote)

    # --- where a model runs ---

    async def _judge_place(self, model: str) -> Refusal | None:
        """Return why a model that isn't named as one of the cloud may still run elsewhere."""
        loads = self._loads
        if loads.young(monotonic()) or await loads.know():
            listed = self._listed(model)
            if listed is not None:
                return remote_model(model) if listed.remote else None
        response = await self._ask("POST", "/api/show", orjson.dumps({"model": model}))
        if response.status in _NO_SUCH_MODEL:  # Ollama says so to the request as well
            return None
        shown = _object(response)
        if shown is None:
            return place_unknown(model)
        return remote_model(model) if shown.get("remote_host") else None

    def _listed(self, model: str) -> Model | None:
        """Return what Ollama last listed under a name."""
        catalog = self._loads.catalog
        return None if catalog is None else catalog.models.get(plain_form(model).model)

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Response:
        """Return Ollama's response; ask again if a kept connection was just being closed."""
        try:
            return await self._loads.ollama.ask(method, path, body)
        except ClosedEarly:
            return await self._loads.ollama.ask(method, path, body)

    # --- Ollama's cloud ---

    def cloud(self, now: float) -> Cloud:
        """Return what Ollama said about its cloud, if that is young enough to be believed."""
        return self._cloud if now - self._said_at <= CLOUD_EACH + CLOUD_WITHIN else Cloud.UNKNOWN

    def forget(self) -> None:
        """Forget what Ollama said: it may have been restarted."""
        self._said_at = self._asked_at = -inf

    def tick(self, now: float) -> None:
        """Ask again when it is time. Call this each second. With `local_only = false`, only a search asks."""
        if self.local_only and now - self._asked_at > CLOUD_EACH and (self._look is None or self._look.done()):
            self._look = asyncio.create_task(self._look_at_cloud())

    async def close(self) -> None:
        """End a question that is under way."""
        if self._look is not None:
            self._look.cancel()
            await asyncio.gather(self._look, return_exceptions=True)

    async def _look_at_cloud(self) -> None:
        with suppress(TimeoutError, UpstreamFailure):
            async with within(CLOUD_WITHIN):
                await self._ask_for_cloud()

    async def _cloud_now(self) -> Cloud:
        """Return whether the cloud is off. Asks again unless it was: the owner may just have turned it off."""
        known = self.cloud(monotonic())
        return known if known is Cloud.OFF else await self._ask_for_cloud()

    async def _ask_for_cloud(self) -> Cloud:
        self._asked_at = monotonic()
        try:
            response = await self._ask("GET", "/api/status")
        except UpstreamFailure:
            self._cloud = Cloud.UNKNOWN
            raise
        self._cloud, self._said_at = cloud_in(response), monotonic()
        return self._cloud


def passes(asked: Asked, rule: Rule) -> bool:
    """Return whether a rule allows the model that a request names, so that it passes if Ollama has that model itself.

    If not, `Judge.judge` says why. A web search has to be judged, too.
    """
    return asked.model is not None and judge_name(asked.model, rule, False) is None


def asked_by_path(path: str) -> Asked:
    """Return what a request asks for that names a model in its path, below /v1/models/."""
    return Asked(Naming.NAMED, named_in(path))


def cloud_in(response: Response) -> Cloud:
    """Return what an answer to GET /api/status says."""
    if response.status == 404:
        return Cloud.NO_SWITCH
    entry = (_object(response) or {}).get("cloud")
    disabled = entry.get("disabled") if isinstance(entry, dict) else None
    if not isinstance(disabled, bool):
        return Cloud.UNKNOWN
    return Cloud.OFF if disabled else Cloud.ON


def _object(response: Response) -> dict[str, object] | None:
    """Return the JSON object of a response with status 200; None if it is anything else."""
    try:
        found = orjson.loads(response.body) if response.status == 200 else None
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None
