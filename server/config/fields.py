"""How a setting is declared: with its environment variables, its default and what it means."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_OFF = {"0", "none", "null", "disabled", "disable", "off"}


def _off(value: Any) -> Any:
    """The words and numbers that switch a limit off, as None."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    try:
        return None if float(value) <= 0 else value
    except (TypeError, ValueError):
        return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


OptionalSeconds = Annotated[float | None, BeforeValidator(_off)]
OptionalCount = Annotated[int | None, BeforeValidator(_off)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]


def setting(default: Any, *names: str, help: str, **bounds: Any) -> Any:
    """A field read from the first of the environment variables ``names`` that is set."""
    return Field(default=default, validation_alias=AliasChoices(*names), description=help, **bounds)


class Part(BaseSettings):
    """Settings that belong together. The first line of a part's docstring is its heading in ``--help``."""

    model_config = SettingsConfigDict(
        populate_by_name=True,
        extra="ignore",
        env_ignore_empty=True,  # what compose files and units leave empty is not set
        allow_inf_nan=False,
    )
