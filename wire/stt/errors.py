"""The error table of the gRPC system: code, name, gRPC status and HTTP status of everything it refuses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SttError:
    """One row. ``code`` is what clients search for in details and bodies (``ERR`` and four digits), ``status`` a gRPC status by name."""

    code: str
    name: str
    status: str
    http_status: int

    def details(self, text: str) -> str:
        """The details string of gRPC: code, space, text for people."""
        return f"{self.code} {text}"

    def body(self, text: str) -> dict[str, str]:
        """The JSON object of the HTTP plane."""
        return {"code": self.code, "message": text}


class SttRefusedError(Exception):
    """A request, a chunk or a stream is refused with an error of the table; ``message`` is for people."""

    def __init__(self, error: SttError, message: str) -> None:
        super().__init__(error.details(message))
        self.error = error
        self.message = message


SESSION_ID_REQUIRED = SttError("ERR1001", "SESSION_ID_REQUIRED", "INVALID_ARGUMENT", 400)
SESSION_ID_ALREADY_ACTIVE = SttError("ERR1002", "SESSION_ID_ALREADY_ACTIVE", "ALREADY_EXISTS", 409)
VAD_THRESHOLD_NEGATIVE = SttError("ERR1003", "VAD_THRESHOLD_NEGATIVE", "INVALID_ARGUMENT", 400)
SESSION_ID_MISSING = SttError("ERR1004", "SESSION_ID_MISSING", "UNAUTHENTICATED", 401)
SESSION_TOKEN_INVALID = SttError("ERR1005", "SESSION_TOKEN_INVALID", "PERMISSION_DENIED", 403)
SESSION_TIMEOUT = SttError("ERR1006", "SESSION_TIMEOUT", "DEADLINE_EXCEEDED", 504)
AUDIO_CHUNK_TOO_LARGE = SttError("ERR1007", "AUDIO_CHUNK_TOO_LARGE", "INVALID_ARGUMENT", 400)
VAD_POOL_EXHAUSTED = SttError("ERR1008", "VAD_POOL_EXHAUSTED", "RESOURCE_EXHAUSTED", 503)
API_KEY_MISSING = SttError("ERR1009", "API_KEY_MISSING", "UNAUTHENTICATED", 401)
DECODE_OPTION_INVALID = SttError("ERR1010", "DECODE_OPTION_INVALID", "INVALID_ARGUMENT", 400)
SESSION_LIMIT_EXCEEDED = SttError("ERR1011", "SESSION_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", 429)
CREATE_SESSION_RATE_LIMITED = SttError("ERR1012", "CREATE_SESSION_RATE_LIMITED", "RESOURCE_EXHAUSTED", 429)
SERVER_SHUTTING_DOWN = SttError("ERR1013", "SERVER_SHUTTING_DOWN", "UNAVAILABLE", 503)
DECODE_TIMEOUT = SttError("ERR2001", "DECODE_TIMEOUT", "DEADLINE_EXCEEDED", 504)
DECODE_TASK_FAILED = SttError("ERR2002", "DECODE_TASK_FAILED", "INTERNAL", 500)
STREAM_RATE_LIMITED = SttError("ERR2003", "STREAM_RATE_LIMITED", "RESOURCE_EXHAUSTED", 429)
STREAM_AUDIO_LIMIT_EXCEEDED = SttError("ERR2004", "STREAM_AUDIO_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", 429)
CREATE_SESSION_UNEXPECTED = SttError("ERR3001", "CREATE_SESSION_UNEXPECTED", "UNKNOWN", 500)
STREAM_UNEXPECTED = SttError("ERR3002", "STREAM_UNEXPECTED", "UNKNOWN", 500)
ADMIN_API_DISABLED = SttError("ERR4001", "ADMIN_API_DISABLED", "UNIMPLEMENTED", 501)
MODEL_ALREADY_LOADED = SttError("ERR4002", "MODEL_ALREADY_LOADED", "ALREADY_EXISTS", 409)
MODEL_UNLOAD_FAILED = SttError("ERR4003", "MODEL_UNLOAD_FAILED", "FAILED_PRECONDITION", 400)
ADMIN_UNAUTHORIZED = SttError("ERR4004", "ADMIN_UNAUTHORIZED", "UNAUTHENTICATED", 401)
ADMIN_MODEL_PATH_FORBIDDEN = SttError("ERR4005", "ADMIN_MODEL_PATH_FORBIDDEN", "PERMISSION_DENIED", 403)
OBS_UNAUTHORIZED = SttError("ERR4006", "OBS_UNAUTHORIZED", "UNAUTHENTICATED", 401)
HTTP_RATE_LIMITED = SttError("ERR4007", "HTTP_RATE_LIMITED", "RESOURCE_EXHAUSTED", 429)
HTTP_IP_FORBIDDEN = SttError("ERR4008", "HTTP_IP_FORBIDDEN", "PERMISSION_DENIED", 403)
ADMIN_MODEL_PROFILE_UNKNOWN = SttError("ERR4009", "ADMIN_MODEL_PROFILE_UNKNOWN", "INVALID_ARGUMENT", 400)

# Of later revisions of the system: authentication of CreateSession by a signed token.
CREATE_SESSION_UNAUTHENTICATED = SttError("ERR1014", "CREATE_SESSION_UNAUTHENTICATED", "UNAUTHENTICATED", 401)

ERRORS: dict[str, SttError] = {row.name: row for row in list(globals().values()) if isinstance(row, SttError)}
"""Every row by its name."""
