"""Where the server listens, who may come in, and how it runs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from server.config.fields import Names, Part, setting

SURFACES = ("yap", "realtime", "openai", "grpc")
_OVER_HTTP = tuple(name for name in SURFACES if name != "grpc")


class Listening(Part):
    """listeners, keys, operation"""

    host: str = setting("0.0.0.0", "SERVER_BIND_HOST", help="address to listen on")
    port: int = setting(8000, "SERVER_PORT", help="port to listen on; 0 takes a free one", ge=0, le=65535)
    surfaces: Names = setting(
        ["yap", "realtime", "openai"], "EARMARK_SURFACES", help="protocols to serve, comma-separated"
    )
    surface_ports: Names = setting(
        [],
        "EARMARK_SURFACE_PORTS",
        help="further ports, each with one surface alone, e.g. rest=8080,sessions=8002; 0 takes a free one",
    )
    trusted_proxies: Names = setting(
        [],
        "EARMARK_TRUSTED_PROXIES",
        help="proxies whose X-Forwarded-For tells who the client is: networks, addresses or host names, comma-separated",
    )
    page: bool = setting(True, "EARMARK_PAGE", help="show browsers a page at / on which to speak or drop a file")
    announce: bool = setting(
        False, "EARMARK_ANNOUNCE", help="print one JSON line with the bound address to stdout once it can transcribe"
    )

    api_key: str = setting(
        "", "VOXTRAL_API_KEY", help="key of the envelope surface; without any one is made up and printed"
    )
    api_keys: Names = setting([], "EARMARK_API_KEYS", help="further keys, comma-separated")
    require_key: bool = setting(
        False, "EARMARK_REQUIRE_KEY", help="demand a key on the surfaces that are open otherwise"
    )

    drain_seconds: float = setting(
        30.0, "EARMARK_DRAIN_SECONDS", help="on TERM, let utterances end for so long before closing", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "LOG_LEVEL", help="least level logged")
    log_format: Literal["text", "json"] = setting(
        "text", "EARMARK_LOG_FORMAT", help="text for people, json for machines"
    )

    @property
    def own_ports(self) -> dict[str, int]:
        """The surfaces with a port of their own."""
        return {name.strip(): int(port) for name, _, port in (part.partition("=") for part in self.surface_ports)}

    @field_validator("surface_ports")
    @classmethod
    def _surface_ports(cls, value: list[str]) -> list[str]:
        for part in value:
            name, _, port = part.partition("=")
            if name.strip() not in _OVER_HTTP or not port.strip().isdecimal() or int(port) > 65535:
                raise ValueError(f"{part!r:.80} is not SURFACE=PORT with a surface of {', '.join(_OVER_HTTP)}")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("surfaces")
    @classmethod
    def _surfaces(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value) - set(SURFACES))
        if unknown or not value:
            raise ValueError(f"one or more of {', '.join(SURFACES)} are expected")
        return value
