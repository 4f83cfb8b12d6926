"""The capacity planner, held against sums done by hand and against what is published or was logged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizing.capacity import GIB, MIB, Setup, as_json, as_text, plan, prompt_tokens
from sizing.gpus import GPUS, find_gpu
from sizing.kv import KvCache, KvReport, check_kv, kv_cache, kv_layout, read_kv_report
from sizing.shape import VOXTRAL_MINI_4B_REALTIME as VOXTRAL
from sizing.shape import AudioEncoder, ModelShape, SizingError, TextDecoder, read_shape

ROOT = Path(__file__).parents[2]
H200 = find_gpu("H200")

TINY = ModelShape(
    "tiny",
    "this test",
    TextDecoder(
        2, 128, heads=4, kv_heads=4, head_dim=32, hidden_dim=256, vocab_size=576, window=8192, tied_embeddings=True
    ),
    AudioEncoder(2, 128, heads=4, head_dim=32, hidden_dim=256, window=750),
)


# ---- the shape


def test_parameters_of_the_released_model() -> None:
    """The model card says a decoder of about 3.4 and an encoder of about 0.97 thousand million; the file is 8.3 GiB of 16-bit numbers."""
    text, audio = VOXTRAL.text, VOXTRAL.audio
    assert text.layers * text.layer_matrices + text.embedding == pytest.approx(3.4e9, rel=0.01)
    assert audio.layers * audio.layer_matrices == pytest.approx(0.97e9, rel=0.01)
    assert VOXTRAL.parameters * 2 / GIB == pytest.approx(8.3, abs=0.06)


def test_parameters_by_hand() -> None:
    decoder_layer = 4 * 128 * 128 + 3 * 128 * 256 + 2 * 128 + 2 * 32 * 128
    encoder_layer = (
        4 * 128 * 128 + 3 * 128 * 256 + 2 * 128 + 4 * 128
    )  # two norms; queries, values, output, feed-forward biased
    convolutions = 3 * 128 * 128 + 128 + 3 * 128 * 128 + 128
    projection = 4 * 128 * 128 + 128 * 128
    embedding = 576 * 128
    assert TINY.parameters == 2 * decoder_layer + 2 * encoder_layer + convolutions + projection + embedding + 128 + 128


def test_an_untied_output_matrix_counts() -> None:
    untied = replace(TINY, text=replace(TINY.text, tied_embeddings=False))
    assert untied.parameters - TINY.parameters == 576 * 128


def test_work_of_a_step_by_hand() -> None:
    layer = 4 * 128 * 128 + 3 * 128 * 256
    decoder = 2 * (2 * layer + 576 * 128) + 2 * 4 * 128 * 100  # 100 tokens seen: queries by keys, weights by values
    encoder = 4 * 2 * (2 * layer + 4 * 128 * 400)  # four frames, each sees 400
    convolutions = 2 * 3 * 128 * (8 * 128 + 4 * 128)
    assert TINY.flops_per_step(100) == decoder + encoder + convolutions + 2 * (4 * 128 * 128 + 128 * 128)


def test_windows_bound_the_work_and_the_reading() -> None:
    assert TINY.flops_per_step(8192) == TINY.flops_per_step(100_000)
    per_token, per_frame = 2 * 2 * 4 * 32 * 2, 2 * 2 * 4 * 32 * 2  # layers, key and value, heads, width, 16 bits
    assert TINY.kv_bytes_read_per_step(100, 2) == 100 * per_token + 400 * per_frame
    assert TINY.kv_bytes_read_per_step(1000, 2) == 1000 * per_token + 750 * per_frame


# ---- params.json


def params() -> dict[str, Any]:
    """As released checkpoints write it, in the shape of ``TINY``."""
    encoder = {
        "audio_encoding_args": {"num_mel_bins": 128, "frame_rate": 12.5},
        "dim": 128,
        "n_layers": 2,
        "head_dim": 32,
        "hidden_dim": 256,
        "n_heads": 4,
        "causal": True,
        "sliding_window": 750,
    }
    return {
        "dim": 128,
        "n_layers": 2,
        "head_dim": 32,
        "hidden_dim": 256,
        "n_heads": 4,
        "n_kv_heads": 4,
        "vocab_size": 576,
        "tied_embeddings": True,
        "sliding_window": 8192,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": 32,
        "multimodal": {"whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": 4}}},
    }


def written(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "params.json").write_text(json.dumps(content))
    return folder


def test_a_checkpoint_is_read(tmp_path: Path) -> None:
    shape = read_shape(written(tmp_path, params()))
    assert (shape.text, shape.audio) == (TINY.text, TINY.audio)
    assert read_shape(tmp_path / "params.json") == shape


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    content = params()
    del content["n_kv_heads"]
    with pytest.raises(SizingError, match="has no 'n_kv_heads'"):
        read_shape(written(tmp_path, content))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("n_layers", "two", "n_layers is 'two'"), ("dim", True, "dim is True"), ("dim", 0, "dim is 0")],
)
def test_nonsense_is_named(tmp_path: Path, field: str, value: object, message: str) -> None:
    with pytest.raises(SizingError, match=message):
        read_shape(written(tmp_path, params() | {field: value}))


def test_a_model_that_does_not_stream_is_refused(tmp_path: Path) -> None:
    content = params()
    content["multimodal"]["whisper_model_args"]["encoder_args"]["causal"] = False
    with pytest.raises(SizingError, match="not causal"):
        read_shape(written(tmp_path, content))


def test_a_folder_without_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SizingError, match=r"params\.json cannot be read"):
        read_shape(tmp_path)


# ---- the cache


def test_the_cache_that_vllm_logged_for_the_tiny_model() -> None:
    """vLLM 0.32 on a CPU, 1 GiB, bf16: blocks of 512 and 128 tokens, 190,650 tokens at a length of 2048."""
    layout = kv_layout(TINY, 2, block_tokens=128)
    assert (layout.text.block_tokens, layout.audio.block_tokens) == (512, 128)
    assert kv_cache(layout, GIB, 2048, 2048, 1).tokens == 190_650


def test_the_cache_of_the_released_model_by_hand() -> None:
    layout = kv_layout(VOXTRAL, 2, block_tokens=16)
    audio_page = 16 * 4 * 32 * 64 * 2 * 2  # tokens, frames, heads, width, key and value, 16 bits
    text_page_of_16 = 16 * 8 * 128 * 2 * 2
    assert audio_page == 8 * text_page_of_16
    assert layout.text.block_tokens == 8 * 16
    assert layout.block_bytes == 32 * audio_page == 16 * MIB  # 26 decoder layers are padded to 32
    # a segment of 1024 tokens, one token in flight: 1024 / 128 + 1 blocks; (750 / 4 + 1) - 1 + 1 tokens are 12 blocks, + 1
    assert layout.text.blocks(1024, 1) == 9
    assert layout.audio.blocks(1024, 1) == 13
    # as vLLM counts, with two whole batches of 4096 in flight: the full length for the encoder too
    assert kv_cache(layout, 74 * 16 * MIB * 3, 1024, 4096, 2) == KvCache(layout, 74 * 3, 1024, 9 + 65)


def test_the_encoder_dominates() -> None:
    """26 layers of 8 heads of 128 against 32 of 32 of 64, the latter four times per token: 4.9 times the bytes per token."""
    text_bytes = VOXTRAL.text.layers * VOXTRAL.text.kv_width
    audio_bytes = VOXTRAL.audio.layers * VOXTRAL.audio.kv_width * VOXTRAL.audio.frames_per_token
    assert audio_bytes / text_bytes == pytest.approx(32 * 32 * 64 * 4 / (26 * 8 * 128))


def test_a_much_deeper_half_is_split_into_groups() -> None:
    """Ten layers beside 32: four groups of eight, the block has the pages of ten."""
    shape = replace(TINY, text=replace(TINY.text, layers=10), audio=replace(TINY.audio, layers=32))
    layout = kv_layout(shape, 2, 16)
    assert (layout.text.copies, layout.text.layers) == (1, 10)
    assert (layout.audio.copies, layout.audio.layers) == (4, 8)
    page = 16 * 4 * 2 * 4 * 32 * 2
    assert layout.block_bytes == 10 * page
    assert layout.audio.blocks(10_000, 1) == 4 * (math.ceil(189 / 16) + 1)


def test_a_page_that_does_not_divide_the_larger_one_is_padded() -> None:
    shape = replace(TINY, text=replace(TINY.text, kv_heads=3, heads=3))
    layout = kv_layout(shape, 2, 16)
    assert layout.text.block_tokens == 16
    assert layout.block_bytes == 2 * (16 * 4 * 2 * 4 * 32 * 2)


def test_equal_windows_make_one_group() -> None:
    shape = replace(TINY, text=replace(TINY.text, window=189))
    layout = kv_layout(shape, 2, 16)
    text_page, audio_page = 16 * 2 * 4 * 32 * 2, 16 * 4 * 2 * 4 * 32 * 2
    assert layout.block_bytes == 2 * text_page + 2 * audio_page
    assert layout.blocks_per_stream(10_000, 1) == math.ceil(189 / 16) + 1


def test_without_a_window_the_whole_length_is_held() -> None:
    shape = replace(TINY, text=replace(TINY.text, window=None))
    assert kv_layout(shape, 2, 16).text.blocks(4096, 1) == 4096 / 64


@given(
    length=st.integers(64, 20_000),
    batch=st.integers(1, 20_000),
    available=st.integers(2**28, 2**34),
    layers=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    heads=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    element_bytes=st.sampled_from([1, 2, 4]),
)
def test_whatever_the_shape_live_streams_hold_no_more_than_vllm_reserves(
    length: int, batch: int, available: int, layers: tuple[int, int], heads: tuple[int, int], element_bytes: int
) -> None:
    shape = replace(
        TINY,
        text=replace(TINY.text, layers=layers[0], kv_heads=heads[0], heads=heads[0]),
        audio=replace(TINY.audio, layers=layers[1], heads=heads[1]),
    )
    layout = kv_layout(shape, element_bytes, 16)
    cache = kv_cache(layout, available, length, batch, 2)
    assert layout.blocks_per_stream(length, 2) <= cache.worst_blocks_per_stream
    assert cache.blocks * layout.block_bytes <= available < (cache.blocks + 1) * layout.block_bytes
    bare = element_bytes * (
        layers[0] * shape.text.kv_width * min(length, 8192) + layers[1] * shape.audio.kv_width * min(4 * length, 750)
    )
    assert layout.blocks_per_stream(length, 2) * layout.block_bytes >= bare


# ---- vLLM's own words

LINE = "GPU KV cache size: 105,707 tokens, Maximum concurrency for 1,024 tokens per request: 103.23x"


def test_the_newest_report_in_a_log_counts() -> None:
    log = f"INFO CPU KV cache size: 1 tokens, Maximum concurrency for 2 tokens per request: 0.50x\nINFO {LINE}\nready"
    assert read_kv_report(log) == KvReport(105_707, 1024, 103.23)
    assert read_kv_report("ready") is None


def test_a_plan_is_held_against_the_report() -> None:
    layout = kv_layout(TINY, 2, block_tokens=128)
    check = check_kv(kv_cache(layout, GIB, 2048, 2048, 1), 200_000)
    assert check.deviation == pytest.approx(190_650 / 200_000 - 1)
    assert check.sentence() == "KV cache: planned 190,650 tokens, vLLM reports 200,000 (-4.7%)"


# ---- the plan


def test_memory_by_hand() -> None:
    made = plan(VOXTRAL, Setup(H200))
    left = 140.4 * 0.92 - made.figure("weight_bytes") - made.figure("activation_bytes") - made.figure("runtime_bytes")
    assert made.figure("kv_bytes") == pytest.approx(left)
    assert made.figure("kv_text_bytes_per_stream") == 9 * 16
    assert made.figure("kv_audio_bytes_per_stream") == 13 * 16
    blocks = math.floor(left * GIB / (16 * MIB))
    assert streams(made, "memory") == (blocks - 1) // 22


def test_compute_bandwidth_and_cpu_by_hand() -> None:
    made = plan(VOXTRAL, Setup(H200, front_end_ms=12.5, front_end_cores=2))
    assert streams(made, "compute") == math.floor(989e12 * 0.4 * 0.08 / VOXTRAL.flops_per_step(1024))
    kv_read = 2 * (26 * 2 * 8 * 128 * 1024 + 32 * 2 * 32 * 64 * 750)
    assert streams(made, "bandwidth") == math.floor((4.8e12 * 0.6 * 0.08 - 2 * VOXTRAL.parameters) / kv_read)
    assert streams(made, "host CPU") == 160
    assert made.binding.resource == "host CPU"


def streams(made: Any, resource: str) -> int:
    (found,) = (bound.streams for bound in made.bounds if bound.resource == resource)
    assert isinstance(found, int)
    return found


def test_prompt_and_segment_as_measured() -> None:
    """vLLM: prompts of 34, 39, 45 and 63 tokens; at a length of 128 and 480 ms 89 steps, ten of them after the audio's end."""
    assert [prompt_tokens(ms) for ms in (80, 480, 960, 2400)] == [34, 39, 45, 63]
    assert Setup(H200, max_model_len=128).segment_seconds == pytest.approx((89 - 10) * 0.08)


def test_quantised_weights() -> None:
    other = 2 * VOXTRAL.other_parameters
    for weights, matrix_bytes in (("bf16", 2), ("fp8", 1), ("int4", 0.5625)):
        made = plan(VOXTRAL, Setup(H200, weights=weights))
        assert made.figure("weight_bytes") * GIB == pytest.approx(matrix_bytes * VOXTRAL.matrix_parameters + other)


def test_an_8_bit_cache_holds_twice_as_many() -> None:
    full, half = (plan(VOXTRAL, Setup(H200, kv_dtype=dtype)) for dtype in ("auto", "fp8"))
    assert half.figure("kv_block_bytes") * 2 == full.figure("kv_block_bytes")
    assert streams(half, "memory") == pytest.approx(2 * streams(full, "memory"), abs=1)


def test_no_room_is_said() -> None:
    made = plan(VOXTRAL, Setup(replace(H200, memory_gib=8.0)))
    assert made.kv is None
    assert streams(made, "memory") == 0
    assert "leave no room" in as_text(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay_ms": 100}, "multiple of 80"),
        ({"max_model_len": 49}, "at least 50"),
        ({"gpu_memory_utilization": 0.0}, "above 0"),
        ({"weights": "int3"}, "bf16, fp8, int4"),
        ({"kv_dtype": "nvfp4"}, "auto, bf16, fp8, float32"),
        ({"front_end_ms": 0.0}, "front_end_ms is 0.0"),
        ({"bandwidth_efficiency": -1.0}, "more than 0"),
    ],
)
def test_a_setup_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SizingError, match=message):
        plan(VOXTRAL, replace(Setup(H200), **change))


@given(
    gpu=st.sampled_from(GPUS),
    length=st.integers(200, 33_000),
    weights=st.sampled_from(["bf16", "fp8", "int4"]),
    kv_dtype=st.sampled_from(["auto", "fp8", "float32"]),
)
def test_every_plan_can_be_shown_and_the_least_bound_binds(gpu: Any, length: int, weights: str, kv_dtype: str) -> None:
    made = plan(VOXTRAL, Setup(gpu, max_model_len=length, weights=weights, kv_dtype=kv_dtype))
    assert made.binding.streams == min(bound.streams for bound in made.bounds)
    assert as_text(made).count("<- binds") == 1
    shown = json.loads(json.dumps(as_json(made)))
    assert shown["streams"] == made.binding.streams
    assert set(shown["figures"]) == {figure.name for figure in made.figures}


def test_more_of_a_resource_never_carries_less() -> None:
    longer = [plan(VOXTRAL, Setup(H200, max_model_len=length)).binding.streams for length in (512, 1024, 4096, 32_768)]
    assert longer == sorted(longer, reverse=True)


def test_gpus_are_found_however_they_are_written() -> None:
    assert find_gpu("rtx 4090").name == "RTX-4090"
    with pytest.raises(SizingError, match="known: A100-40GB"):
        find_gpu("H1000")


# ---- the command


def earmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", "plan", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_prints_the_plan(tmp_path: Path) -> None:
    done = earmark("--gpu", "H200", "--delay-ms", "480", "--max-model-len", "1024")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == as_text(plan(VOXTRAL, Setup(H200)))
    done = earmark("--gpu", "L4", "--model", str(written(tmp_path, params())), "--json")
    assert json.loads(done.stdout)["figures"]["parameters"]["value"] == TINY.parameters


def test_the_command_says_what_to_change() -> None:
    done = earmark("--gpu", "L4", "--delay-ms", "100")
    assert done.returncode == 3
    assert done.stderr == "earmark: a delay of 100 ms: a multiple of 80 in 80..2400 is expected\n"
