"""The languages that multilingual Whisper models know, by the codes of their language tokens."""

from __future__ import annotations

from server.engines.base import EngineError

__all__ = ["LANGUAGES", "check_language"]

_CODES = (
    "af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it "
    "ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so "
    "sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo zh yue"
)

LANGUAGES: tuple[str, ...] = tuple(_CODES.split())


def check_language(language: str | None, known: tuple[str, ...]) -> str | None:
    """The code as the model knows it ("en_US" is "en"); ``None``, also for an empty one, when it is to be detected.

    Raises:
        EngineError: the model does not know it.
    """
    code = (language or "").replace("_", "-").split("-")[0].strip().lower()
    if not code:
        return None
    if code not in known:
        names = "English only" if known == ("en",) else f"{len(known)} languages"
        raise EngineError(f"this Whisper model hears {names}, not {language!r}; leave the language out or name another")
    return code
