"""Where the server's logs go and how they look."""

from __future__ import annotations

import logging
import sys

import structlog

from server.config import Settings


def _without_traceback_of_bad_utf8(record: logging.LogRecord) -> bool:
    """A client's bytes are no fault of ours: one line is enough. uvicorn also stumbles over what follows such bytes."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError) or isinstance(getattr(error, "__context__", None), UnicodeDecodeError):
        record.msg, record.args, record.exc_info = "a client sent text that is not UTF-8", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def configure_logging(settings: Settings) -> None:
    """Logs go to stderr: one line of text or of JSON each."""
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
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # uvicorn logs each WebSocket's URL at info, and envelope clients carry their key in it
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(max(level, logging.WARNING))
    uvicorn_log.addFilter(_without_traceback_of_bad_utf8)
    logging.getLogger("asyncio").addFilter(_without_traceback_of_bad_utf8)
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
