"""What recognises: the engines and their settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from server.config.fields import Names, Part, setting

DELAYS_MS = tuple(range(80, 2401, 80))


class Engines(Part):
    """engines"""

    engine: Literal["auto", "sphinx", "scripted", "vllm", "vllm-remote", "whisper"] = setting(
        "auto",
        "EARMARK_ENGINE",
        help="what recognises: vllm (Voxtral), vllm-remote (other servers), whisper, sphinx (built in, weak), "
        "scripted (says its script); auto takes vllm where CUDA, vLLM and the model are",
    )
    delay_ms: int = setting(
        480,
        "VOXTRAL_TRANSCRIPTION_DELAY_MS",
        help="transcription delay of utterances that name none: a multiple of 80 in 80..2400",
    )
    model_id: str = setting(
        "mistralai/Voxtral-Mini-4B-Realtime-2602", "VOXTRAL_MODEL_ID", help="model, as the hub names it"
    )
    served_model_name: str = setting(
        "", "VOXTRAL_SERVED_MODEL_NAME", help="name that clients use for the model; default: the model's own"
    )
    script: str = setting("", "EARMARK_SCRIPT", help="scripted engine: its spec, JSON or the path of a JSON file")
    sphinx_profile: Literal["fast", "accurate"] = setting(
        "fast", "EARMARK_SPHINX_PROFILE", help="sphinx: search settings; accurate costs 2.4 times the CPU"
    )
    sphinx_workers: int = setting(
        0, "EARMARK_SPHINX_WORKERS", help="sphinx: worker processes, one stream each; 0 fits them to the cores", ge=0
    )
    sphinx_maxhmmpf: int = setting(
        0, "EARMARK_SPHINX_MAXHMMPF", help="sphinx: most active models per frame; 0 takes the profile's", ge=0
    )
    backends: Names = setting(
        [], "EARMARK_BACKENDS", help="vllm-remote: servers of /v1/realtime, e.g. ws://one:8000,wss://two/prefix"
    )
    backend_delay_ms: int = setting(
        0,
        "EARMARK_BACKEND_DELAY_MS",
        help="vllm-remote: transcription delay of back ends that do not tell theirs (vLLM's own); 0: that of --delay-ms",
        ge=0,
        le=2400,
        multiple_of=80,
    )
    backend_slots: int = setting(
        0,
        "EARMARK_BACKEND_SLOTS",
        help="vllm-remote: streams at once on each back end, for vLLM at most its --max-num-seqs; 0: what it says, else 128",
        ge=0,
    )
    backend_api_key: str = setting("", "EARMARK_BACKEND_API_KEY", help="vllm-remote: bearer token for the back ends")
    backend_start_seconds: float = setting(
        60.0,
        "EARMARK_BACKEND_START_SECONDS",
        help="vllm-remote: wait so long at the start for a back end to answer",
        ge=0,
    )
    vad: bool = setting(True, "EARMARK_VAD", help="voice activity detection: rolls in silence, vad=auto for clients")

    # the vllm engine
    model_dir: str = setting(
        "",
        "VOXTRAL_MODEL_DIR",
        help="vllm: the model's files, fetched there (HF_TOKEN) when incomplete; default: models/voxtral, or without that "
        "and without CUDA the small model that comes along, models/nano",
    )
    uniform_delay: bool = setting(
        False, "EARMARK_UNIFORM_DELAY", help="vllm: vLLM's own model class, one delay for all streams"
    )
    allow_untrained_delay: bool = setting(
        False,
        "EARMARK_ALLOW_UNTRAINED_DELAY",
        help="vllm: also delays that Voxtral was not trained for (1280..2320 ms)",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "VLLM_DTYPE", help="vllm: type of weights and activations; auto takes the model's"
    )
    gpu_memory_utilization: float = setting(
        0.92, "VLLM_GPU_MEMORY_UTILIZATION", help="vllm: share of the GPU's memory to use", gt=0, le=1
    )
    max_model_len: int = setting(
        1024, "VLLM_MAX_MODEL_LEN", help="vllm: tokens of one segment at most; 12.5 are a second", ge=400
    )
    max_num_seqs: int = setting(
        0, "VLLM_MAX_NUM_SEQS", help="vllm: streams heard at once; 0 fits them to the GPU's memory", ge=0
    )
    max_num_batched_tokens: int = setting(
        0, "VLLM_MAX_NUM_BATCHED_TOKENS", help="vllm: tokens per engine step; 0 fits them to the GPU", ge=0
    )
    enforce_eager: bool | None = setting(
        None, "VLLM_ENFORCE_EAGER", help="vllm: no compilation and no CUDA graphs; by default only on a CPU"
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = setting(
        "auto", "VLLM_KV_CACHE_DTYPE", help="vllm: auto, or fp8 where the attention backend accepts it"
    )
    calculate_kv_scales: bool = setting(
        False, "VLLM_CALCULATE_KV_SCALES", help="accepted for compatibility; vLLM 0.32 reads scales from the model"
    )
    compilation_config: str = setting(
        '{"cudagraph_mode":"PIECEWISE"}', "VLLM_COMPILATION_CONFIG", help="vllm: JSON; none leaves it to vLLM"
    )
    disable_compile_cache: bool = setting(
        True, "VLLM_DISABLE_COMPILE_CACHE", help="vllm: keep nothing compiled from one start to the next"
    )
    quantization: Literal["none", "bitsandbytes"] = setting(
        "none", "VLLM_QUANTIZATION", help="vllm: bitsandbytes loads the weights as INT4, on CUDA"
    )
    load_format: Literal["mistral", "dummy"] = setting(
        "mistral", "VLLM_LOAD_FORMAT", help="vllm: dummy makes random weights, for load tests: the text is noise"
    )
    show_vllm_logs: bool = setting(False, "SHOW_VLLM_LOGS", help="vllm: its own log from level info on")

    # what hears whole files
    chat_engine: Literal["none", "vllm", "remote"] = setting(
        "none",
        "EARMARK_CHAT_ENGINE",
        help="what transcribes whole files and answers questions about them: vllm (Voxtral Mini 3B in process), "
        "remote (an OpenAI-compatible server)",
    )
    chat_model_dir: str = setting(
        "models/voxtral-mini-3b",
        "EARMARK_CHAT_MODEL_DIR",
        help="chat engine vllm: the model's files; fetched there (HF_TOKEN) when incomplete",
    )
    chat_model_id: str = setting(
        "",
        "EARMARK_CHAT_MODEL_ID",
        help="chat engine: model, as the hub or the remote server names it; by default "
        "mistralai/Voxtral-Mini-3B-2507, or the first that the remote server lists",
    )
    chat_url: str = setting(
        "http://127.0.0.1:8000", "EARMARK_CHAT_URL", help="chat engine remote: the server's URL, with or without /v1"
    )
    chat_api_key: str = setting("", "EARMARK_CHAT_API_KEY", help="chat engine remote: the server's key")
    chat_max_num_seqs: int = setting(
        16, "EARMARK_CHAT_MAX_NUM_SEQS", help="chat engine: requests worked on at once", ge=1
    )
    chat_max_model_len: int = setting(
        32768,
        "EARMARK_CHAT_MAX_MODEL_LEN",
        help="chat engine vllm: tokens of one request at most; 12.5 are a second of audio",
        ge=1024,
    )
    chat_gpu_memory_utilization: float = setting(
        0.3,
        "EARMARK_CHAT_GPU_MEMORY_UTILIZATION",
        help="chat engine vllm: share of the GPU's memory to use, beside that of the vllm engine",
        gt=0,
        le=1,
    )

    @field_validator("engine", mode="before")
    @classmethod
    def _lower_engine(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("delay_ms")
    @classmethod
    def _delay(cls, value: int) -> int:
        if value not in DELAYS_MS:
            raise ValueError("a multiple of 80 in 80..2400 is expected")
        return value

    @field_validator("served_model_name", "model_id")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        return value.strip()  # clients' names are trimmed too
