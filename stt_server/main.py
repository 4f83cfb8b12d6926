"""``python -m stt_server.main``: serve ``stt.STTBackend`` with the configuration of its own system."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from server.config import ConfigError
from server.engines.base import EngineError
from stt_server.translation import translate


def main() -> int:
    """0 after a clean end, 2 for a bad setting, 1 when the engine or a listener cannot start."""
    try:
        translated = translate(sys.argv[1:], os.environ)
        from server.app import run
        from server.logs import configure_logging

        configure_logging(translated.settings)
        if translated.log_file:
            _log_to(Path(translated.log_file).expanduser())
        for key in translated.without_effect:
            logging.getLogger("earmark.stt_server").info("%s has no effect here", key)
        import uvloop

        uvloop.run(run(translated.settings))
    except ConfigError as error:
        print(f"Bad setting, the server does not start.\n{error}", file=sys.stderr)
        return 2
    except (EngineError, OSError) as error:
        print(f"The server cannot start: {error}", file=sys.stderr)
        return 1
    return 0


def _log_to(file: Path) -> None:
    """The log goes there as well.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.getLogger().handlers[0].formatter)
    logging.getLogger().addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
