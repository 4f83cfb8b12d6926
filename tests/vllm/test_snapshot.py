"""The model's files: complete or not, named, fetched with clear errors, and never edited."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from server.engines.base import EngineError
from server.engines.vllm import snapshot

TEKKEN = {"config": {"version": "v13"}, "audio": {"transcription_delay_ms": 480, "frame_rate": 12.5}}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "my-voxtral"
    directory.mkdir()
    (directory / "params.json").write_text("{}")
    (directory / "tekken.json").write_text(json.dumps(TEKKEN))
    (directory / "consolidated.safetensors").write_bytes(b"weights")
    return directory


@pytest.mark.parametrize("name", ["params.json", "tekken.json", "consolidated.safetensors"])
def test_a_directory_without_one_of_its_files_is_incomplete(model: Path, name: str) -> None:
    assert snapshot.missing(model) == []
    (model / name).unlink()
    assert snapshot.missing(model) == [name if name.endswith("json") else "*.safetensors"]


def test_a_local_model_is_called_after_its_directory_and_a_fetched_one_as_on_the_hub(
    model: Path, tmp_path: Path
) -> None:
    assert snapshot.model_name(model, "mistralai/Voxtral") == "my-voxtral"
    assert snapshot.model_name(tmp_path / "absent", "mistralai/Voxtral") == "mistralai/Voxtral"
    (model / ".earmark-origin").write_text("mistralai/Voxtral\n")
    assert snapshot.model_name(model, "something/else") == "mistralai/Voxtral"


def test_a_complete_directory_is_not_fetched(model: Path) -> None:
    snapshot.fetch(model, "no/such-model", None)  # would fail without a network


def test_a_failed_download_names_the_model_the_directory_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="nox -s vllm")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(EngineError, match=r"cannot fetch some/model into .*VOXTRAL_MODEL_DIR"):
            snapshot.fetch(tmp_path / "models", "some/model", None)


def test_the_same_delay_needs_no_copy(model: Path) -> None:
    with snapshot.with_delay(model, 480) as directory:
        assert directory == model


@pytest.mark.parametrize("holder", ["audio", "top"])
def test_another_delay_is_written_into_a_directory_of_links_that_goes_away(model: Path, holder: str) -> None:
    if holder == "top":
        (model / "tekken.json").write_text(json.dumps({"transcription_delay_ms": 480, "audio": {}}))
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    with snapshot.with_delay(model, 960) as derived:
        assert derived != model
        assert snapshot.delay_ms(json.loads((derived / "tekken.json").read_text())) == 960
        assert (derived / "consolidated.safetensors").resolve() == model / "consolidated.safetensors"
        assert {file.name for file in derived.iterdir()} == set(before)
    assert not derived.exists()
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_a_damaged_file_is_named(model: Path) -> None:
    (model / "tekken.json").write_text("{")
    with pytest.raises(EngineError, match=r"tekken\.json"), snapshot.with_delay(model, 960):
        pass
