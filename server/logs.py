"""Where the server's logs go and how they look."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable

import structlog

from server.config import Settings


def _without_traceback_of_bad_utf8(record: logging.LogRecord) -> bool:
    """A client's bytes are no fault of ours: one line is enough. uvicorn also stumbles over what follows such bytes."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError) or isinstance(getattr(error, "__context__", None), UnicodeDecodeError):
        record.msg, record.args, record.exc_info = "a client sent text that is not UTF-8", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def _without_traceback_of_a_client_gone(record: logging.LogRecord) -> bool:
    """grpc.aio writes a traceback when a call's end meets its client's disappearance. That is no fault of ours: one line is enough."""
    error = record.exc_info[1] if record.exc_info else None
    if type(error).__name__ == "ExecuteBatchError":
        record.msg, record.args, record.exc_info = (
            "a client was gone before it could be told the end of its call",
            (),
            None,
        )
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


_IN_A_URL = re.compile(r"(?i)((?<!\w)(?:api[-_]?key|token|access_token|authorization)=)[^&\s'\"]+")
_BEARER = re.compile(r"(?i)\b(bearer )[A-Za-z0-9._~+/=-]{4,}")
_TOKEN_VARIABLES = ("STT_OBSERVABILITY_TOKEN", "STT_ADMIN_TOKEN", "HF_TOKEN")
_SHORTEST_SECRET = 4


class Masking(logging.Formatter):
    """Formats as another formatter does, with ``***`` for every secret that is known and for whatever stands where keys do."""

    def __init__(self, formatter: logging.Formatter, secrets: Iterable[str]) -> None:
        super().__init__()
        self._formatter = formatter
        self._secrets = sorted({text for text in secrets if len(text) >= _SHORTEST_SECRET}, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = self._formatter.format(record)
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return _BEARER.sub(r"\1***", _IN_A_URL.sub(r"\1***", line))


def _secrets(settings: Settings) -> list[str]:
    keys = [settings.api_key, *settings.api_keys, settings.backend_api_key, settings.chat_api_key]
    return [key.strip() for key in (*keys, *(os.environ.get(name, "") for name in _TOKEN_VARIABLES))]


def configure_logging(settings: Settings) -> None:
    """Logs go to stderr: one line of text or of JSON each, without keys."""
    level = getattr(logging, settings.log_level.upper())
    stamp = structlog.processors.TimeStamper(fmt="iso")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        stamp,
        structlog.processors.format_exc_info,
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
    )
    handler.setFormatter(Masking(formatter, _secrets(settings)))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # uvicorn logs each WebSocket's URL at info, and envelope clients carry their key in it
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(max(level, logging.WARNING))
    uvicorn_log.addFilter(_without_traceback_of_bad_utf8)
    logging.getLogger("asyncio").addFilter(_without_traceback_of_bad_utf8)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_without_traceback_of_a_client_gone)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
