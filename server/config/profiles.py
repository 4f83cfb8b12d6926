"""Models to load at run time: profiles from a file, and requests, as overrides of the server's settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.config import ConfigError, Settings
from server.config.engines import Engines

BACKENDS = {"faster_whisper": "whisper", "faster-whisper": "whisper", "remote": "vllm-remote"}
"""Names that the gRPC system and people give to our engines."""

MEANINGS: dict[str, dict[str, str]] = {
    "whisper": {
        "model_size": "whisper_model",
        "model_path": "whisper_model_dir",
        "device": "whisper_device",
        "compute_type": "whisper_compute_type",
        "pool_size": "whisper_workers",
        "language": "whisper_language",
        "task": "whisper_task",
    },
    "sphinx": {"pool_size": "sphinx_workers"},
    "scripted": {"model_path": "script"},
    "vllm": {"model_path": "model_dir", "compute_type": "dtype", "pool_size": "max_num_seqs"},
    "vllm-remote": {"pool_size": "backend_slots"},
}
"""Which setting a key of the gRPC system is, engine by engine; keys that are none have no effect there, and that is told."""

KEYS = (
    "model_path",
    "model_size",
    "backend",
    "device",
    "compute_type",
    "pool_size",
    "language_fix",
    "language",
    "task",
)


@dataclass(frozen=True, slots=True)
class Profile:
    """The settings of one engine, and which of the wishes have no meaning for it."""

    settings: Settings
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profiles:
    """By name; ``default`` is what a request without any wish loads."""

    default: str
    wishes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_profiles(settings: Settings) -> Profiles:
    """The profiles of the settings' file; without one there is the default profile alone, which is the server's own engine.

    Raises:
        ConfigError: the file cannot be read, or a profile in it makes no sense.
    """
    default = settings.default_model_profile
    if not settings.model_profiles:
        return Profiles(default, {default: {}})
    where = f"--model-profiles={settings.model_profiles} (or EARMARK_MODEL_PROFILES)"
    try:
        document = yaml.safe_load(Path(settings.model_profiles).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{where}: {error}") from None
    found = document.get("model_load_profiles", document) if isinstance(document, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ConfigError(f"{where}: an object model_load_profiles of profiles by name is expected")
    for name, wishes in found.items():
        if not isinstance(wishes, dict):
            raise ConfigError(f"{where}: profile {name!r}: an object of settings is expected")
        try:
            profile_settings(settings, wishes)
        except ConfigError as error:
            raise ConfigError(f"{where}: profile {name!r}: {error}") from None
    return Profiles(default, found if default in found else {default: {}} | found)


def profile_settings(settings: Settings, wishes: Mapping[str, Any]) -> Profile:
    """The server's settings with the wishes in their place. A wish is a key of the gRPC system or a setting of an engine by its name.

    Raises:
        ConfigError: no such key, or a value that does not do.
    """
    given = {key: value for key, value in wishes.items() if value is not None}
    engine = str(given.pop("backend", given.pop("engine", settings.engine))).strip().lower()
    engine = BACKENDS.get(engine, engine)
    meanings = MEANINGS.get(engine, {})
    changes: dict[str, Any] = {"engine": engine, "served_model_name": ""}
    ignored = []
    for key, value in given.items():
        name = meanings.get(key, key)
        if name in Engines.model_fields and name not in KEYS:
            changes[name] = json.dumps(value) if isinstance(value, dict) else value  # a script may stand there as it is
        elif key in KEYS:
            ignored.append(key)
        else:
            raise ConfigError(f"{key!r:.80} is no setting of an engine and none of {', '.join(KEYS)}")
    try:
        return Profile(Settings(**(settings.model_dump() | changes)), tuple(ignored))
    except ValidationError as error:
        told = "; ".join(f"{fault['loc'][0]}={fault['input']!r:.80}: {fault['msg']}" for fault in error.errors())
        raise ConfigError(told) from None
