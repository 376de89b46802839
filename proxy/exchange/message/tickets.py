"""What a request needs to be sent to Ollama: a model, in the form that it is loaded with, and a place in the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxy.exchange.message.limits import Limit


class Form(NamedTuple):
    """A model with the options that it is loaded with. Ollama has at most one form of a model in memory."""

    model: str  # the canonical name
    options: tuple[tuple[str, object], ...] = ()  # sorted by name; none: Ollama's defaults


NO_FORM = Form("")
"""Of a request for which it isn't certain that a model here answers it. It waits for its rule's limit alone."""


class Ticket:
    """One request that needs a model. Two are never equal."""

    __slots__ = ("device", "form", "limit", "number", "shielded", "since", "slots")

    def __init__(
        self,
        number: int,
        device: str,
        form: Form,
        since: float,
        slots: int | None = None,
        shielded: bool = True,
        limit: Limit | None = None,
    ) -> None:
        self.number = number  # unique; a later request has a higher one
        self.device = device
        self.form = form
        self.since = since
        self.slots = slots  # requests for the model that Ollama may have at once; None: no limit
        self.shielded = shielded  # False: it loads the model by itself, for itself alone
        self.limit = limit  # of the rule that lets it in; None: there are no rules

    def __repr__(self) -> str:
        return f"<Ticket {self.number} of {self.device} for {self.form.model}>"
