"""``python -m server``: read the settings, serve, and end with a code that tells what went wrong."""

from __future__ import annotations

import os
import sys

from server.config import ConfigError, read
from server.engines.base import EngineError


def main() -> int:
    """0 after a clean end, 2 for a bad setting, 1 when the engine or the listener cannot start."""
    try:
        settings = read(sys.argv[1:], os.environ)
        from server.app import run
        from server.logs import configure_logging

        configure_logging(settings)
        import uvloop

        uvloop.run(run(settings))
    except ConfigError as error:
        print(f"Bad setting, the server does not start.\n{error}", file=sys.stderr)
        return 2
    except (EngineError, OSError) as error:
        print(f"The server cannot start: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
