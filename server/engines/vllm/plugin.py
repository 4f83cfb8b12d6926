"""What vLLM calls in each of its processes: makes our model known there, and has the process end with the server."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

ARCHITECTURE = "EarmarkVoxtralRealtime"
ENTRY_POINT = "earmark"
SERVER_VARIABLE = "EARMARK_SERVER_PID"
"""Set by the server, for the processes that vLLM starts for it."""

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Entry point ``vllm.general_plugins``. A name of its own: nobody gets this model who does not ask for it."""
    _end_with_server()
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "server.engines.vllm.model:PerStreamDelayVoxtral")


def _end_with_server() -> None:
    """A server that is killed cannot end its engine process, which would keep the memory of the GPU for ever."""
    if sys.platform == "linux" and os.environ.get(SERVER_VARIABLE) == str(os.getppid()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def delay_per_stream(config: Any) -> Any:
    """An override of the model's configuration: that model, and one more column in each row of the audio embedding."""
    if "VoxtralRealtimeGeneration" not in (config.architectures or ()):
        return config
    audio = config.audio_config
    config.text_config.projection_size = audio.block_pool_size * (audio.d_model + 1)
    config.architectures = [ARCHITECTURE]
    return config
