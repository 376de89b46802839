"""A simulated Ollama in a thread of its own, for tests of what blocks: a command, an install."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from proxy.simulated_ollama import DEFAULT_MODELS, Model, SimulatedOllama
from tests.support.patience import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def threaded(*models: Model) -> Iterator[SimulatedOllama]:
    """Give one that answers, with these models or the usual ones."""
    loop, started = asyncio.new_event_loop(), SimulatedOllama(models or DEFAULT_MODELS)
    loop.run_until_complete(started.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield started
    asyncio.run_coroutine_threadsafe(started.close(), loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(PATIENCE)
    loop.close()
