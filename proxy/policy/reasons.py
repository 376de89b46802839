"""Why an exchange didn't go as its client wanted: the codes in the access log."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why an exchange was refused, failed or cut: stable codes for the access log, listed in docs/api-contract.md."""

    # Judged from the head, by gate, in this order.
    VERSION_NOT_SERVED = "version_not_served"
    FRAMING_AMBIGUOUS = "framing_ambiguous"
    TRANSFER_ENCODING_INVALID = "transfer_encoding_invalid"
    CONTENT_LENGTH_INVALID = "content_length_invalid"
    HOST_REPEATED = "host_repeated"
    ORIGIN_REPEATED = "origin_repeated"
    HOST_MISSING = "host_missing"
    HOST_MALFORMED = "host_malformed"
    HOST_NOT_ALLOWED = "host_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    WEBSOCKET = "websocket"
    TARGET_FORM = "target_form"
    TARGET_NOT_PLAIN = "target_not_plain"
    SLASHES = "slashes"
    PATH_NOT_SERVED = "path_not_served"
    METHOD_NOT_SERVED = "method_not_served"
    LOOP = "loop"
    EXPECTATION_UNKNOWN = "expectation_unknown"
    CONTENT_CODING_UNKNOWN = "content_coding_unknown"
    CONTENT_TOO_LARGE = "content_too_large"
    # Judged from what a body asks for, in this order.
    MODEL_AMBIGUOUS = "model_ambiguous"
    MODEL_UNREADABLE = "model_unreadable"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    LEAVES_THE_MAC = "leaves_the_mac"
    WEB_SEARCH = "web_search"
    NATIVE_OPTIONS = "native_options"
    # Who asks, before all other rules, in this order; the first three on the port for `tailscale serve`.
    SERVE_CLOSED = "serve_closed"
    BY_FUNNEL = "by_funnel"
    NOT_BY_SERVE = "not_by_serve"
    PEER_UNKNOWN = "peer_unknown"
    IDENTITY_LATE = "identity_late"
    # Who asks, by the access rules: after the framing, Host and Origin are checked.
    IDENTITY_NEEDED = "identity_needed"
    ASKER_NOT_ALLOWED = "asker_not_allowed"
    # The client's connection.
    PEER_NOT_ALLOWED = "peer_not_allowed"
    OVERLOADED = "overloaded"
    DRAINING = "draining"
    MALFORMED = "malformed"
    TARGET_TOO_LONG = "target_too_long"
    HEAD_TOO_LARGE = "head_too_large"
    HEAD_TIMEOUT = "head_timeout"
    CONTENT_TIMEOUT = "content_timeout"
    STALLED = "stalled"
    # Ollama's side, and the proxy's own.
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_MALFORMED = "upstream_malformed"
    UPSTREAM_CLOSED = "upstream_closed"
    HELD_UPLOAD = "held_upload"
    MISSING_TERMINATOR = "missing_terminator"
    LOAD_FAILED = "load_failed"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


AFTER_ADMISSION = frozenset(
    {
        *(Reason.MODEL_AMBIGUOUS, Reason.MODEL_UNREADABLE, Reason.MODEL_NOT_ALLOWED, Reason.LEAVES_THE_MAC),
        *(Reason.WEB_SEARCH, Reason.NATIVE_OPTIONS),
        # Judged again after a wait.
        *(Reason.PEER_UNKNOWN, Reason.IDENTITY_LATE, Reason.IDENTITY_NEEDED, Reason.ASKER_NOT_ALLOWED),
        *(Reason.PATH_NOT_SERVED, Reason.METHOD_NOT_SERVED),
    }
)
"""Why a request is refused although the gate let its head pass."""
