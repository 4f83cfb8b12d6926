"""Settings of OpenAI's surface."""

from __future__ import annotations

from server.config.fields import Names, Part, setting


class OpenAI(Part):
    """OpenAI's surface"""

    openai_aliases: Names = setting(
        [
            "whisper-1",
            "gpt-4o-transcribe",
            "gpt-4o-mini-transcribe",
            "gpt-transcribe",
            "gpt-realtime-whisper",
            "gpt-live-transcribe",
        ],
        "EARMARK_OPENAI_ALIASES",
        help="names of OpenAI's models that mean the default model here, so that clients work unchanged",
    )
