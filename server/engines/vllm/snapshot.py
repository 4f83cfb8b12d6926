"""The model's files on disk: whether they are complete, how they get there, and a copy with another delay that leaves them alone."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from server.engines.base import EngineError

log = logging.getLogger(__name__)

_NAMED = ("params.json", "tekken.json")
_WEIGHTS = "*.safetensors"
_FETCHED = ("params.json", "tekken.json", "consolidated*.safetensors")
_ORIGIN = ".earmark-origin"
_CAVEAT = "caveat.txt"


def missing(directory: Path) -> list[str]:
    """What keeps the directory from being a model in Mistral's format; nothing when it is one."""
    lacking = [name for name in _NAMED if not (directory / name).is_file()]
    if not any(directory.glob(_WEIGHTS)):
        lacking.append(_WEIGHTS)
    return lacking


def model_name(directory: Path, model_id: str) -> str:
    """What to call the model: the hub's name if it comes from there, else the name of its directory."""
    if missing(directory):
        return model_id  # it will be fetched
    try:
        return (directory / _ORIGIN).read_text().strip() or model_id
    except OSError:
        return directory.resolve().name


def caveat(directory: Path) -> str:
    """The sentence that a model wants printed wherever its accuracy is shown; most have none."""
    try:
        return (directory / _CAVEAT).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def fetch(directory: Path, model_id: str, token: str | None, setting: str = "VOXTRAL_MODEL_DIR") -> None:
    """Make the directory complete, from the hub if need be. What is there already is kept; a broken download goes on where it stopped.

    Raises:
        EngineError: with what the operator can do about it.
    """
    lacking = missing(directory)
    if not lacking:
        return
    manual = f"put {', '.join(_NAMED)} and {_WEIGHTS} of the model into {directory} (setting {setting})"
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise EngineError(
            f"{directory} lacks {', '.join(lacking)}, and huggingface_hub is not installed to fetch it; {manual}"
        ) from error
    log.info("fetching %s into %s: %s missing", model_id, directory, ", ".join(lacking))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        huggingface_hub.snapshot_download(
            model_id, local_dir=str(directory), allow_patterns=list(_FETCHED), token=token or None
        )
        (directory / _ORIGIN).write_text(model_id + "\n")
    except errors.GatedRepoError as error:
        raise EngineError(
            f"{model_id} is gated: accept its terms on huggingface.co and set HF_TOKEN, or {manual}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EngineError(
            f"the hub knows no {model_id} (VOXTRAL_MODEL_ID), or HF_TOKEN may not read it; or {manual}"
        ) from error
    except Exception as error:
        raise EngineError(
            f"cannot fetch {model_id} into {directory}: {type(error).__name__}: {' '.join(str(error).split())[:300]}; "
            f"try again to go on where it stopped, or {manual}"
        ) from error
    lacking = missing(directory)
    if lacking:
        raise EngineError(f"{model_id} was fetched but lacks {', '.join(lacking)}: it is not in Mistral's format")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from the snapshot.

    Raises:
        EngineError: it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise EngineError(f"{path} is not a JSON object")
    return value


def read_params(directory: Path) -> dict[str, Any]:
    """The model's shape.

    Raises:
        EngineError: it is no Voxtral Realtime model.
    """
    params = read_json(directory / "params.json")
    if not (_encoder(params) or {}).get("causal"):
        raise EngineError(
            f"{directory} holds no Voxtral Realtime model: params.json describes no causal audio encoder "
            "(Voxtral Mini 3B and other models that hear whole files cannot stream)"
        )
    return params


def check_whole_files(directory: Path) -> None:
    """Raises EngineError unless the model is one that hears whole files, as Voxtral Mini 3B does."""
    encoder = _encoder(read_json(directory / "params.json"))
    if encoder is None:
        raise EngineError(f"{directory} holds no Voxtral model: params.json describes no audio encoder")
    if encoder.get("causal"):
        raise EngineError(f"{directory} holds a Voxtral Realtime model; whole files are for Voxtral Mini 3B")


def _encoder(params: dict[str, Any]) -> dict[str, Any] | None:
    try:
        encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    except (KeyError, TypeError):
        return None
    return encoder if isinstance(encoder, dict) else None


def delay_ms(tokenizer: dict[str, Any]) -> int | None:
    """The transcription delay that a ``tekken.json`` carries."""
    for holder in (tokenizer, tokenizer.get("audio") or {}):
        if "transcription_delay_ms" in holder:
            return int(holder["transcription_delay_ms"])
    return None


@contextmanager
def with_delay(directory: Path, wanted_ms: int) -> Iterator[Path]:
    """A directory like this one whose tokenizer has that delay: the very same when it has it already, else one of links."""
    tokenizer = read_json(directory / "tekken.json")
    if delay_ms(tokenizer) == wanted_ms:
        yield directory
        return
    holder = tokenizer if "transcription_delay_ms" in tokenizer else tokenizer.get("audio", tokenizer)
    holder["transcription_delay_ms"] = wanted_ms
    with tempfile.TemporaryDirectory(prefix="earmark-voxtral-") as name:
        derived = Path(name)
        for file in directory.resolve().iterdir():
            if file.name != "tekken.json":
                (derived / file.name).symlink_to(file)
        (derived / "tekken.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
        yield derived
