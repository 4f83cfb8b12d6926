"""What vLLM calls in each of its processes: makes the model known whose transcription delay belongs to the stream."""

from __future__ import annotations

from typing import Any

ARCHITECTURE = "EarmarkVoxtralRealtime"
ENTRY_POINT = "earmark"


def register() -> None:
    """Entry point ``vllm.general_plugins``. A name of its own: nobody gets this model who does not ask for it."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "server.engines.vllm.model:PerStreamDelayVoxtral")


def delay_per_stream(config: Any) -> Any:
    """An override of the model's configuration: that model, and one more column in each row of the audio embedding."""
    if "VoxtralRealtimeGeneration" not in (config.architectures or ()):
        return config
    audio = config.audio_config
    config.text_config.projection_size = audio.block_pool_size * (audio.d_model + 1)
    config.architectures = [ARCHITECTURE]
    return config
