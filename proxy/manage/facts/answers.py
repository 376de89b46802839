"""Send one GET or POST without a body, as a client would: to the proxy at its addresses, or to Ollama itself."""

from __future__ import annotations

import http.client
from typing import NamedTuple

_TIMEOUT = 10.0  # seconds for one answer
_ANSWER_LIMIT = 2**24  # bytes of an answer that are read: a model in a list has about 500


class Answer(NamedTuple):
    """A response. `id` is the proxy's for the request, and empty if another program answered."""

    status: int
    content: bytes
    id: str = ""


def ask(host: str, port: int, method: str, target: str, timeout: float = _TIMEOUT) -> Answer:
    """Return the answer to a request without content. OSError: no connection; HTTPException: no answer on it."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    connection.connect()
    try:
        connection.request(method, target, headers={"Host": f"localhost:{port}"})
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(_ANSWER_LIMIT), answer.getheader("x-request-id", ""))
    except OSError as error:
        raise http.client.HTTPException(f"connected, but: {error}") from error
    finally:
        connection.close()
