"""Settings of OpenAI's surface."""

from __future__ import annotations

from server.config.fields import Names, OptionalCount, OptionalSeconds, Part, setting


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
    openai_max_file_mb: OptionalCount = setting(
        100, "EARMARK_OPENAI_MAX_FILE_MB", help="largest file taken in, in MB (2**20 bytes); 0: no limit"
    )
    openai_max_audio_seconds: OptionalSeconds = setting(
        7200.0, "EARMARK_OPENAI_MAX_AUDIO_SECONDS", help="longest file taken in; 0: no limit"
    )
    openai_timeout_seconds: OptionalSeconds = setting(
        1800.0, "EARMARK_OPENAI_TIMEOUT_SECONDS", help="give a file up that takes longer; 0: never"
    )
    openai_max_requests: OptionalCount = setting(
        64,
        "EARMARK_OPENAI_MAX_REQUESTS",
        help="files transcribed or waiting at once, others are told to come later; 0: no limit",
    )
