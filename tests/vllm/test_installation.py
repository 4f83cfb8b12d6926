"""Without vLLM, or with the wrong one, the engine says what to install, and nobody else pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.building import build_engine
from server.config import ConfigError, read
from server.engines.base import EngineError
from server.engines.vllm import internals
from server.engines.vllm.engine import VllmEngine
from server.engines.vllm.settings import VllmSettings
from tests.vllm import checkpoints


def distribution(folder: Path, name: str, version: str) -> None:
    """An installed distribution as packaging tools leave it: metadata in a folder of its name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_importing_the_engine_imports_neither_vllm_nor_torch() -> None:
    code = (
        "import sys, server.engines.vllm.engine; sys.exit(bool({'vllm', 'torch', 'mistral_common'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.skipif(internals.installed() is not None, reason="vLLM is installed")
async def test_without_vllm_the_start_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"vLLM is not installed; pip install 'earmark\[vllm\]'"):
        await VllmEngine(VllmSettings(tmp_path)).start()


@pytest.mark.skipif(internals.installed() is None, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("params", "part"),
    [("[]", "not a JSON object"), ("{", "cannot read"), ('{"dim": 64}', "no Voxtral Realtime model")],
)
async def test_a_model_of_another_kind_is_refused_in_words(tmp_path: Path, params: str, part: str) -> None:
    directory = checkpoints.make(tmp_path / "model")
    (directory / "params.json").write_text(params)
    with pytest.raises(EngineError, match=part):
        await VllmEngine(VllmSettings(directory)).start()


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.3.2", "1.0"])
def test_another_version_is_refused_with_both_versions_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    distribution(tmp_path, "vllm", version)
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EngineError, match=rf"vllm {version} is installed, but 0\.32\.\* is supported"):
        internals.check_installation(plugin=False)


def test_a_supported_version_without_our_plugin_asks_for_the_project_to_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "vllm", "0.32.1")
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    internals.check_installation(plugin=False)
    monkeypatch.setenv("VLLM_PLUGINS", "others")
    with pytest.raises(EngineError, match=r"--uniform-delay|VLLM_PLUGINS=others"):
        internals.check_installation(plugin=True)


def test_a_setting_that_the_engine_refuses_is_a_bad_setting(tmp_path: Path) -> None:
    settings = read(["--engine", "vllm", "--model-dir", str(tmp_path), "--delay-ms", "1280"], {})
    with pytest.raises(ConfigError, match="--allow-untrained-delay"):
        build_engine(settings)


def test_the_engine_says_what_it_can_do_before_it_starts(tmp_path: Path) -> None:
    settings = read(
        ["--engine", "vllm", "--model-dir", str(checkpoints_without_weights(tmp_path)), "--max-num-seqs=9"], {}
    )
    info = build_engine(settings)[0].info
    assert (info.name, info.model, info.slots, info.words) == ("vllm", "named", 9, False)
    assert info.delays_seconds[0] == 0.08
    assert info.delays_seconds[-1] == 2.4
    # 1024 tokens, less one to say, 32 of left padding, 30 of the longest delay and 11 behind the audio
    assert info.max_segment_seconds == pytest.approx((1024 - 1 - 32 - 30 - 11) * 0.08)


def checkpoints_without_weights(folder: Path) -> Path:
    directory = folder / "named"
    directory.mkdir()
    for name in ("params.json", "tekken.json", "consolidated.safetensors"):
        (directory / name).write_text("{}")
    return directory
