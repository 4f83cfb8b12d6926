"""``python -m stt_server``."""

import sys

from stt_server.main import main

if __name__ == "__main__":
    sys.exit(main())
