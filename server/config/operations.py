"""Settings of the operations plane: its listener, its guards, models to load, what is kept of streams."""

from __future__ import annotations

from server.config.fields import Names, OptionalCount, OptionalSeconds, Part, setting


class Operations(Part):
    """the operations plane, and what is kept of streams"""

    ops: bool = setting(True, "EARMARK_OPS", help="a listener for operators: metrics, health, system, models")
    ops_host: str = setting("127.0.0.1", "EARMARK_OPS_HOST", help="operations plane: address to listen on")
    ops_port: int = setting(
        8001,
        "EARMARK_OPS_PORT",
        help="operations plane: port; 0 takes a free one. Named here and taken, the server does not start; the default one taken, "
        "it starts without the plane",
        ge=0,
        le=65535,
    )
    ops_allowlist: Names = setting(
        [],
        "STT_HTTP_ALLOWLIST",
        help="operations plane: networks whose clients may come in, comma-separated; none: all",
    )
    ops_trusted_proxies: Names = setting(
        [],
        "STT_HTTP_TRUSTED_PROXIES",
        help="operations plane: proxies whose X-Forwarded-For is believed; by default those of --trusted-proxies",
    )
    ops_rate: float = setting(
        5.0, "STT_HTTP_RATE_LIMIT_RPS", help="operations plane: requests per second and client; 0: no limit", ge=0
    )
    ops_burst: float = setting(
        10.0,
        "STT_HTTP_RATE_LIMIT_BURST",
        help="operations plane: requests that a client may make at once; 0: as many as per second",
        ge=0,
    )
    ops_show_api_keys: bool = setting(
        False,
        "EARMARK_OPS_SHOW_API_KEYS",
        help="operations plane: sessions by the API key that gRPC clients name themselves with, in metrics",
    )
    health_window_seconds: float = setting(
        60.0, "EARMARK_HEALTH_WINDOW_SECONDS", help="operations plane: health looks so far back", gt=0
    )
    health_min_events: int = setting(
        5, "EARMARK_HEALTH_MIN_EVENTS", help="operations plane: fewer ended utterances say nothing about health", ge=1
    )
    health_max_timeout_ratio: float = setting(
        0.5,
        "EARMARK_HEALTH_MAX_TIMEOUT_RATIO",
        help="operations plane: unhealthy from this share of timeouts on",
        ge=0,
        le=1,
    )
    health_min_success_ratio: float = setting(
        0.5,
        "EARMARK_HEALTH_MIN_SUCCESS_RATIO",
        help="operations plane: unhealthy below this share of successes",
        ge=0,
        le=1,
    )

    # models at run time
    model_profiles: str = setting(
        "",
        "EARMARK_MODEL_PROFILES",
        help="YAML or JSON file with model_load_profiles: models that /admin/load_model can load",
    )
    default_model_profile: str = setting(
        "default", "EARMARK_DEFAULT_MODEL_PROFILE", help="profile of a load request that says nothing about the model"
    )

    # recordings of what was received
    persist_audio: bool = setting(False, "EARMARK_PERSIST_AUDIO", help="keep the received audio: a WAV file per stream")
    audio_directory: str = setting("data/audio", "EARMARK_AUDIO_DIRECTORY", help="where kept audio goes; ~ is expanded")
    audio_queue_chunks: int = setting(
        256,
        "EARMARK_AUDIO_QUEUE_CHUNKS",
        help="chunks of a stream that may wait to be written; the oldest are dropped; 0: any number",
        ge=0,
    )
    audio_max_bytes: OptionalCount = setting(
        None, "EARMARK_AUDIO_MAX_BYTES", help="kept audio: bytes of all files; 0: any"
    )
    audio_max_files: OptionalCount = setting(
        None, "EARMARK_AUDIO_MAX_FILES", help="kept audio: number of files; 0: any"
    )
    audio_max_age_days: OptionalSeconds = setting(
        None, "EARMARK_AUDIO_MAX_AGE_DAYS", help="kept audio: age of a file in days; 0: any"
    )

    # transcripts
    log_transcripts: bool = setting(
        False, "EARMARK_LOG_TRANSCRIPTS", help="write what was said to --transcript-file; never to the log"
    )
    transcript_file: str = setting("", "EARMARK_TRANSCRIPT_FILE", help="file for transcripts, a JSON object per line")
    transcript_retention_days: int = setting(
        7,
        "EARMARK_TRANSCRIPT_RETENTION_DAYS",
        help="a new transcript file each day, and so many old ones kept; 0: one file that grows",
        ge=0,
    )
