"""What is chosen where the operator left it open, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engines.base import EngineError
from server.engines.vllm import delays, tuning
from server.engines.vllm.settings import VllmSettings
from server.engines.vllm.tuning import Machine

CPU = Machine()
H100 = Machine("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0))
A100 = Machine("NVIDIA A100-SXM4-40GB", 40 * 2**30, (8, 0))

PARAMS: dict[str, Any] = {
    "n_layers": 2,
    "n_kv_heads": 4,
    "head_dim": 32,
    "sliding_window": None,
    "multimodal": {
        "whisper_model_args": {
            "encoder_args": {"n_layers": 3, "n_kv_heads": 8, "head_dim": 16, "sliding_window": None},
            "downsample_args": {"downsample_factor": 4},
        }
    },
}


def settings(**given: Any) -> VllmSettings:
    return VllmSettings(Path("model"), **given)


def test_the_kv_cache_of_a_stream_is_keys_and_values_of_every_layer_of_both_parts() -> None:
    text = 2 * 4 * 32 * 1000  # layers x heads x width x positions
    audio = 3 * 8 * 16 * 4000  # four positions per token
    assert tuning.kv_bytes_per_stream(PARAMS, 1000, 2048, 2) == 2 * 2 * (text + audio)


def test_a_window_bounds_it_by_what_one_step_may_add() -> None:
    windowed = PARAMS | {"sliding_window": 101}
    text, audio = 2 * 4 * 32 * (100 + 50), 3 * 8 * 16 * 4000
    assert tuning.kv_bytes_per_stream(windowed, 1000, 50, 2) == 2 * 2 * (text + audio)


@given(st.integers(2**20, 2**38), st.integers(400, 32768))
def test_streams_that_are_promised_fit_the_memory(memory: int, length: int) -> None:
    chosen = settings(max_model_len=length)
    streams = tuning.most_streams(PARAMS, chosen, 2048, memory, 0)
    assert 1 <= streams <= 512
    if streams > 1:
        assert streams * tuning.kv_bytes_per_stream(PARAMS, length, 2048, 2) <= memory * 0.92 * 0.9


@pytest.mark.parametrize(
    ("gpu", "tokens"),
    [("NVIDIA H100 80GB HBM3", 4096), ("NVIDIA B200", 4096), ("NVIDIA L40S", 2048), ("Tesla T4", 2048), ("", 2048)],
)
def test_tokens_per_step_go_by_the_gpu(gpu: str, tokens: int) -> None:
    assert tuning.batched_tokens(gpu) == tokens


def test_the_table_has_a_line_and_a_reason_for_each_choice() -> None:
    tuned = tuning.tune(settings(), CPU, PARAMS)
    lines = tuned.table().splitlines()
    assert len(lines) == len(tuned.choices)
    assert all(choice.why and choice.value in line for choice, line in zip(tuned.choices, lines, strict=True))
    assert tuned.settings.max_num_seqs == 64
    assert tuned.settings.enforce_eager is True


def test_what_was_asked_for_stays() -> None:
    asked = settings(max_num_seqs=7, max_num_batched_tokens=512, enforce_eager=False)
    tuned = tuning.tune(asked, H100, PARAMS).settings
    assert (tuned.max_num_seqs, tuned.max_num_batched_tokens, tuned.enforce_eager) == (7, 512, False)


@pytest.mark.parametrize(("machine", "kept"), [(H100, "fp8"), (A100, "auto"), (CPU, "auto")])
def test_an_fp8_kv_cache_is_tried_only_where_the_device_has_fp8(machine: Machine, kept: str) -> None:
    tuned = tuning.tune(settings(kv_cache_dtype="fp8"), machine, PARAMS)
    assert tuned.settings.kv_cache_dtype == kept
    (line,) = [choice for choice in tuned.choices if choice.name == "kv-cache-dtype"]
    assert line.value == kept


@pytest.mark.parametrize(("machine", "part"), [(CPU, "needs CUDA"), (H100, "pip install bitsandbytes")])
def test_int4_is_refused_where_the_build_cannot_load_it(machine: Machine, part: str) -> None:
    with pytest.raises(EngineError, match=part):
        tuning.tune(settings(quantization="bitsandbytes"), machine, PARAMS)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"default_delay_ms": 100}, "multiple of 80"),
        ({"default_delay_ms": 1280}, "--allow-untrained-delay"),
        ({"default_delay_ms": 2480, "allow_untrained_delay": True}, "80..2400"),
        ({"gpu_memory_utilization": 1.5}, "gpu-memory-utilization"),
        ({"max_model_len": 100}, "max-model-len"),
        ({"max_num_seqs": 0}, "max-num-seqs"),
        ({"quantization": "gptq"}, "bitsandbytes"),
        ({"compilation_config": "{"}, "compilation-config"),
        ({"compilation_config": "[1]"}, "compilation-config"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(given: dict[str, Any], part: str) -> None:
    with pytest.raises(EngineError, match=part):
        settings(**given)


def test_no_compilation_configuration_leaves_it_to_vllm() -> None:
    assert settings(compilation_config="none").compilation() is None
    assert settings().compilation() == {"cudagraph_mode": "PIECEWISE"}


def test_trained_delays_are_every_step_up_to_1200_ms_and_2400() -> None:
    trained = delays.allowed_ms(untrained=False)
    assert len(trained) == 16
    assert {80, 480, 1200, 2400} < set(trained)
    assert not {1280, 2320} & set(trained)
    assert len(delays.allowed_ms(untrained=True)) == 30
    assert delays.check_ms(2400, untrained=False) == 30
