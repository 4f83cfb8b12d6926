"""Text normalisers by name and version: what is not counted as a word error."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version

# Written without spaces between words: a character is the unit of alignment, and blanks are no part of a character count.
UNSPACED_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my"})
# The character error rate is the headline where a "word" is a matter of taste.
CHARACTER_LANGUAGES = frozenset({"zh", "yue", "ja", "ko", "th", "lo", "km", "my"})


@dataclass(frozen=True, slots=True)
class Normaliser:
    """``sha256`` covers everything that decides its output: name, package version and the rules of ours."""

    name: str
    sha256: str
    apply: Callable[[str], str]

    def of(self, language: str) -> Normaliser:
        """The rules for a text in ``language``: these, unless they are each language's own."""
        return normaliser(default_name(language)) if self.name == BY_LANGUAGE else self

    def words(self, text: str) -> list[str]:
        """The words of ``text`` that are counted."""
        return self.apply(text).split()


def _unchanged(text: str) -> str:
    return text


@cache
def _whisper_english() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return lru_cache(maxsize=4096)(EnglishTextNormalizer())  # references come again in every round of a run


@cache
def _basic() -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer

    # Marks are kept: without them Hindi or Thai lose their vowels and different words become equal.
    return lru_cache(maxsize=4096)(BasicTextNormalizer(preserve_marks=True))


_NUMBER = re.compile(r"\bone(s?)\b|(\d)|(?<=\d)\.(?=\d)|([%$¢€£])")


def _digit_by_digit(text: str) -> str:
    """``100`` and ``one hundred`` and ``one zero zero`` all as ``1 0 0``; ``2.5%`` as ``2 point 5 %``; ``21st`` as ``2 1 st``."""

    def spaced(match: re.Match[str]) -> str:
        plural, digit, symbol = match.groups()
        if digit or symbol:
            return f" {digit or symbol} "
        return " point " if plural is None else f" 1 {plural} "

    return " ".join(_NUMBER.sub(spaced, text).split())


def _whisper_english_digitwise(text: str) -> str:
    return _digit_by_digit(_whisper_english()(text))


# name -> (function, the rules of ours in words, the package that does the rest). A change of rules is a new version.
_RULES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "none": (_unchanged, "words are what whitespace parts", ""),
    "basic/1": (lambda text: _basic()(text), "BasicTextNormalizer(preserve_marks=True)", "whisper-normalizer"),
    "whisper-english/1": (lambda text: _whisper_english()(text), "EnglishTextNormalizer()", "whisper-normalizer"),
    "whisper-english-digitwise/1": (
        _whisper_english_digitwise,
        f"EnglishTextNormalizer(), then {_NUMBER.pattern}: digits and currency signs apart, one as 1, point between digits",
        "whisper-normalizer",
    ),
}
BY_LANGUAGE = "by-language/1"
NAMES = (*_RULES, BY_LANGUAGE)
_ENGLISH = frozenset({"whisper-english/1", "whisper-english-digitwise/1"})


@cache
def normaliser(name: str) -> Normaliser:
    """The normaliser of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name == BY_LANGUAGE:
        both = [normaliser(default_name(language)) for language in ("en", "")]
        defined_by = "\n".join([name, *(f"{one.name} {one.sha256}" for one in both)])
        return Normaliser(name, hashlib.sha256(defined_by.encode()).hexdigest(), _basic())
    if name not in _RULES:
        raise ValueError(f"no normaliser is called {name!r}; there are {', '.join(NAMES)}")
    function, rules, package = _RULES[name]
    defined_by = "\n".join([name, rules, f"{package} {version(package)}" if package else ""])
    return Normaliser(name, hashlib.sha256(defined_by.encode()).hexdigest(), function)


def default_name(language: str) -> str:
    """The normaliser for a corpus in ``language`` (ISO 639, a region may follow).

    English gets the digitwise variant. Whisper's own rules join spoken digits into one word ("one zero zero" -> "100"), so one
    digit misheard among nine costs one error or ten by chance, and a hypothesis with a stray word between the digits is charged
    with more insertions than the reference has words. Digit by digit a number weighs the same however it was written, and
    "ten thirty", "10:30" and "1030" agree. The price: "two million" weighs seven words. ``whisper-english/1`` remains for
    figures to be laid beside published ones. ``mul``, a corpus in several languages, gets each language's own.
    """
    if language == "mul":
        return BY_LANGUAGE
    return "whisper-english-digitwise/1" if re.split("[-_]", language.lower())[0] == "en" else "basic/1"


def is_character_language(language: str) -> bool:
    """True where the character error rate is the headline; a region may follow the language."""
    return re.split("[-_]", language.lower())[0] in CHARACTER_LANGUAGES


def comparable_names(languages: Collection[str]) -> tuple[str, ...]:
    """The normalisers under which texts in these languages can be laid side by side; English rules are for English alone."""
    english = any(re.split("[-_]", language.lower())[0] == "en" for language in languages)
    several = len({re.split("[-_]", language.lower())[0] for language in languages}) > 1
    names = [name for name in _RULES if name not in _ENGLISH or (english and not several)]
    return (*names, BY_LANGUAGE) if several else tuple(names)
