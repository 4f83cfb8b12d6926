"""Every setting of the server: its flag, its environment variables, its default and what it means, read once and checked."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import AliasChoices, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from server.config.engines import DELAYS_MS, Engines
from server.config.fields import Part
from server.config.listening import SURFACES, Listening
from server.config.openai import OpenAI
from server.config.operations import Operations
from server.config.rest import Rest
from server.config.rpc import Rpc
from server.config.sessions import Sessions
from server.config.streams import Streams
from server.config.whisper import Whisper

__all__ = ["DELAYS_MS", "SURFACES", "ConfigError", "Settings", "environment_names", "read"]

PARTS: tuple[type[Part], ...] = (Listening, Engines, Whisper, Streams, Sessions, Rest, OpenAI, Rpc, Operations)


LIVE_VARIABLES = (
    "STT_OBSERVABILITY_TOKEN",
    "STT_PUBLIC_HEALTH",
    "STT_HEALTH_DETAIL_MODE",
    "STT_ENABLE_GPU_METRICS",
    "STT_ADMIN_ENABLED",
    "STT_ADMIN_TOKEN",
    "STT_ADMIN_ALLOW_MODEL_PATH",
    "STT_ADMIN_MODEL_PATH_ALLOWLIST",
)
"""Tokens and switches of the operations plane, which may change while the server runs."""


class ConfigError(Exception):
    """A setting is wrong. The message has one line per wrong setting: its name, its value and what is expected."""


class Settings(Listening, Engines, Whisper, Streams, Sessions, Rest, OpenAI, Rpc, Operations):
    """All settings. A flag wins over the environment, the environment over the default."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no files behind the operator's back."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings from flags and environment.

    Raises:
        ConfigError: one line per bad setting.
        SystemExit: after ``--help``, and for flags that do not exist.
    """
    flags = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaint(fault, given, environment) for fault in error.errors())) from None


def environment_names(field: str) -> list[str]:
    """The environment variables of a setting."""
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]


def _complaint(fault: Any, given: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    place = str(fault["loc"][0])
    field = next((name for name in Settings.model_fields if place == name or place in environment_names(name)), place)
    flag = f"--{field.replace('_', '-')}"
    if field in given:
        return f"{flag}={given[field]}: {fault['msg']}"
    name = next((name for name in environment_names(field) if name in environment), environment_names(field)[0])
    return f"{name}={environment.get(name, fault['input'])}: {fault['msg']} (flag {flag})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        allow_abbrev=False,
        description="Serve streaming speech-to-text. Every option can also be set by the environment variable in brackets.",
        epilog="Read anew at each request to the operations plane, and from the environment alone: "
        + ", ".join(LIVE_VARIABLES)
        + ".",
    )
    groups = {part: parser.add_argument_group(str(part.__doc__)) for part in PARTS}
    for name, field in Settings.model_fields.items():
        group = next(group for part, group in groups.items() if name in part.model_fields)
        names = ", ".join(environment_names(name))
        default = ",".join(field.default) if isinstance(field.default, list) else field.default
        text = f"{field.description} [{names}] (default: {default if default not in (None, '') else 'none'})"
        text = text.replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        if field.annotation in (bool, bool | None):
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            group.add_argument(flag, default=None, metavar="VALUE", help=text)
    return parser
