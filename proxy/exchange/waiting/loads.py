"""Load models on the proxy's own behalf, and know which ones Ollama has.

Ollama aborts a load when the client that caused it leaves, and each retry begins it again. A load that the proxy asks
for serves everyone who waits, and continues when a client leaves.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from proxy import PROGRAM
from proxy.event_loop.patience import within
from proxy.exchange.message.failures import UpstreamFailure
from proxy.exchange.waiting.catalog import Catalog, UnreadableError, catalog_of, load_request, loaded_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.exchange.waiting.asking import Ollama, Response
    from proxy.exchange.waiting.catalog import Listed, Model
    from proxy.exchange.waiting.queue import Form

LISTS_TAKE = 2.0
"""Seconds in which Ollama must give both lists. After that, a request is forwarded without them."""

REMEMBERED_FOR = 10.0
"""Seconds for which a failed load is answered from memory: Codex repeats a 500 thirty times in a minute."""

BACK_WITHIN = 15.0
"""Seconds in which Ollama may come back if it goes away during a load; launchd starts it again within 10 s."""

AGAIN_AFTER = 1.0
"""Seconds before a load is asked for again after that."""

RENEWED_AFTER = 5.0
"""Seconds after which Ollama's lists of models are asked for again, while requests go on. It takes milliseconds."""

FRESH_FOR = 15.0
"""Seconds for which they are believed. A request that comes later waits for them."""

SILENT_FOR = 1.0
"""Seconds for which nobody asks again after Ollama gave no lists. Requests go on without them."""

MUTE_FOR = 20.0
"""The same if LISTS_TAKE ran out, so that not every request to a stuck Ollama waits that long."""


class FailedLoad(NamedTuple):
    """Ollama's answer to a load that failed. Status 0: there was none, and the body says why."""

    status: int
    body: bytes
    at: float


class Loads:
    """Asks Ollama to load models, one at a time, and to list those that it has."""

    def __init__(
        self, ollama: Ollama, ended: Callable[[Form, FailedLoad | None], object], looked: Callable[[], object]
    ) -> None:
        """`ended` is called at the end of each load, with its form and any failure. `listed` is then new.

        `looked` is called after each answer about the lists, or after none came.
        """
        self.ollama = ollama  # a reload replaces it
        self.catalog: Catalog | None = None  # None: Ollama hasn't said
        self.listed: dict[str, Listed] = {}  # what Ollama has in memory, by canonical names
        self.began = 0.0  # when the last load began
        self._ended = ended
        self.looked_at = -inf  # when Ollama gave the lists
        self._looked = looked
        self._silent_until = -inf  # when Ollama may be asked again after it gave no lists
        self._look: asyncio.Task[bool] | None = None
        self._task: asyncio.Task[FailedLoad | None] | None = None
        self.failures: dict[Form, FailedLoad] = {}  # of moments ago, as a rule

    def __repr__(self) -> str:
        return f"<Loads {'loading' if self._task else 'idle'}, {len(self.listed)} listed>"

    def fresh(self, now: float) -> bool:
        """Return whether the lists are young enough to be believed."""
        return now - self.looked_at <= FRESH_FOR

    def young(self, now: float) -> bool:
        """Return whether the lists are believed and needn't be asked for again."""
        return now - self.looked_at <= RENEWED_AFTER

    def settled(self, now: float) -> bool:
        """Return whether nobody need wait for lists: they are there, or Ollama gave none a moment ago.

        Asks for old ones again in the background.
        """
        silent = now < self._silent_until
        if not self.fresh(now):
            return silent
        if not (silent or self.young(now)):
            self.look()
        return True

    def forget(self) -> None:
        """Stop believing the lists, because Ollama may have been restarted."""
        self.looked_at = self._silent_until = -inf

    def look(self) -> asyncio.Task[bool]:
        """Ask for both lists, or join a request for them. The task returns whether Ollama gave them."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._ask_for_lists())
        return self._look

    def failure(self, form: Form, now: float) -> FailedLoad | None:
        """Return why the last load of `form` failed, if that was moments ago."""
        failure = self.failures.get(form)
        return failure if failure is not None and now - failure.at < REMEMBERED_FOR else None

    def load(self, form: Form, model: Model) -> None:
        """Load a model; `ended` is called when that is over."""
        if self._task is not None:
            raise RuntimeError(f"{self._task} hasn't ended")
        self.began = monotonic()
        self._task = asyncio.create_task(self._load(form, model))
        self._task.add_done_callback(partial(self._over, form))

    async def close(self) -> None:
        """Cancel a load and a request for lists that are under way."""
        for task in (self._task, self._look):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _over(self, form: Form, task: asyncio.Task[FailedLoad | None]) -> None:
        """Report the end of a load, whatever ended it: others wait for it."""
        self._task = None
        if task.cancelled():
            return
        broken = task.exception() is not None
        self._ended(form, FailedLoad(0, b"the proxy made a mistake", monotonic()) if broken else task.result())
        task.result()  # raises the mistake, for the log

    async def _load(self, form: Form, model: Model) -> FailedLoad | None:
        """Return why the load failed; None if it didn't, or if Ollama takes no such request (4xx, above all).

        A request that waits then goes on and gets Ollama's own answer, which may be another one: an Ollama before v0.30
        doesn't say that a model only makes embeddings, and other servers with Ollama's lists have no such route.
        """
        failure: FailedLoad | None = None
        try:
            answer = await self._ask_for_load(form, model)
            if answer.status >= 500:
                failure = FailedLoad(answer.status, answer.body, monotonic())
        except UpstreamFailure as error:
            said = f"Ollama didn't load the model: {error}; run `{PROGRAM} status` on the server, and try again"
            failure = FailedLoad(0, said.encode(), monotonic())
        now = monotonic()
        self.failures = {each: old for each, old in self.failures.items() if self.failure(each, now)}
        self.failures.pop(form, None)
        if failure is not None and failure.status:  # an Ollama that was away may be back at once
            self.failures[form] = failure
        if self._look is not None:  # one that was begun during the load knows too little
            await asyncio.wait({self._look})
        if not await self.look():
            self.looked_at = -inf  # lists from before the load don't know its model
        return failure

    async def _ask_for_load(self, form: Form, model: Model) -> Response:
        """Return Ollama's answer. Asks again if Ollama is restarted meanwhile, because no client's request was sent."""
        until = inf
        while True:
            try:
                return await self.ollama.ask("POST", *load_request(form, model))
            except UpstreamFailure:
                until = min(until, monotonic() + BACK_WITHIN)
                if monotonic() + AGAIN_AFTER > until:
                    raise
            await asyncio.sleep(AGAIN_AFTER)

    async def _ask_for_lists(self) -> bool:
        try:
            found = await self._lists()
        except TimeoutError:
            found, self._silent_until = False, monotonic() + MUTE_FOR
        else:
            self._silent_until = -inf if found else monotonic() + SILENT_FOR
        self._looked()
        return found

    async def _lists(self) -> bool:
        try:
            async with within(LISTS_TAKE):
                tags: Response = await self.ollama.ask("GET", "/api/tags")
                ps = await self.ollama.ask("GET", "/api/ps")
            if (tags.status, ps.status) != (200, 200):
                return False
            catalog, listed = catalog_of(tags.body), loaded_in(ps.body)
        except (UpstreamFailure, UnreadableError):
            return False
        self.catalog, self.listed, self.looked_at = catalog, listed, monotonic()
        return True
