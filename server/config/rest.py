"""Settings of the REST surface and of uploads to the OpenAI-compatible one."""

from __future__ import annotations

from server.config.fields import OptionalCount, OptionalSeconds, Part, setting


class Rest(Part):
    """the REST surface"""

    max_file_size_mb: float = setting(
        100.0, "MAX_FILE_SIZE_MB", help="largest file that is taken, in MiB of its own bytes", gt=0, le=2048
    )
    max_audio_duration_seconds: OptionalSeconds = setting(
        1800.0, "MAX_AUDIO_DURATION_SECONDS", help="longest recording to transcribe; 0 or off: any"
    )
    max_question_audio_seconds: OptionalSeconds = setting(
        2400.0, "EARMARK_MAX_QUESTION_AUDIO_SECONDS", help="longest recording to ask about; 0 or off: any"
    )
    processing_timeout_s: OptionalSeconds = setting(
        300.0, "VOXTRAL_TIMEOUT", help="give a recording up that is not done after so long; 0 or off: never"
    )
    upload_idle_s: OptionalSeconds = setting(
        30.0, "EARMARK_UPLOAD_IDLE_S", help="give an upload up of which nothing comes for so long; 0 or off: never"
    )
    rate_limit_window: float = setting(
        60.0, "RATE_LIMIT_WINDOW", help="REST: seconds that the limits on requests are for", gt=0
    )
    rate_limit_requests: OptionalCount = setting(
        100, "RATE_LIMIT_REQUESTS", help="REST: health requests of a client in a window; 0 or off: any"
    )
    rate_limit_transcription: OptionalCount = setting(
        50, "EARMARK_RATE_LIMIT_TRANSCRIPTION", help="REST: transcriptions of a client in a window; 0 or off: any"
    )
    rate_limit_batch: OptionalCount = setting(
        10, "EARMARK_RATE_LIMIT_BATCH", help="REST: batches of a client in a window; 0 or off: any"
    )
    rate_limit_understanding: OptionalCount = setting(
        20, "EARMARK_RATE_LIMIT_UNDERSTANDING", help="REST: questions of a client in a window; 0 or off: any"
    )
    max_rest_requests: OptionalCount = setting(
        64, "EARMARK_MAX_REST_REQUESTS", help="REST: requests worked on or waiting at once; 0 or off: any"
    )
    max_rest_streams: OptionalCount = setting(
        256, "EARMARK_MAX_REST_STREAMS", help="REST: connections to /stream/transcribe at once; 0 or off: any"
    )
    max_upload_mb: float = setting(
        2048.0, "EARMARK_MAX_UPLOAD_MB", help="REST: bodies of all requests in memory together, in MiB", gt=0
    )
    max_chunk_size_mb: float = setting(
        10.0, "EARMARK_MAX_CHUNK_SIZE_MB", help="REST: largest chunk of /stream/transcribe, in MiB", gt=0, le=11
    )
