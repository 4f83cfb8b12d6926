"""How a token of English text may sound, as phones of the CMU dictionary, where no dictionary has it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import islice, product

Lookup = Callable[[str], str | None]
"""The phones of a lower-case word, or ``None``."""

MOST_READINGS = 8
LONGEST_NUMBER = 15  # digits that are read as one number; longer ones are read digit by digit

_UNITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
          "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
_ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth", "twelve": "twelfth",
}  # fmt: skip
_SIGNS = {"&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "#": "number", "°": "degrees", "§": "section",
          "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "/": "slash"}  # fmt: skip
_SHORT = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "st": "saint", "vs": "versus", "etc": "et cetera", "no": "number",
          "jr": "junior", "sr": "senior", "prof": "professor", "mt": "mount", "ft": "feet", "km": "kilometers", "kg": "kilograms",
          "cm": "centimeters", "mm": "millimeters", "lb": "pounds", "oz": "ounces"}  # fmt: skip
_PIECE = re.compile(r"[$€£]?\d[\d,]*(?:\.\d+)?(?:st|nd|rd|th|s)?|[a-z][a-z']*|[&%+=@#°§¥/€£$]")
_LETTERS = {
    "a": "EY", "b": "B IY", "c": "S IY", "d": "D IY", "e": "IY", "f": "EH F", "g": "JH IY", "h": "EY CH", "i": "AY", "j": "JH EY",
    "k": "K EY", "l": "EH L", "m": "EH M", "n": "EH N", "o": "OW", "p": "P IY", "q": "K Y UW", "r": "AA R", "s": "EH S", "t": "T IY",
    "u": "Y UW", "v": "V IY", "w": "D AH B AH L Y UW", "x": "EH K S", "y": "W AY", "z": "Z IY",
}  # fmt: skip
# Spellings and their usual sounds, longest first; an aligner wants the right number of sounds of about the right kind, no more.
_SPELLINGS = {
    "tion": "SH AH N", "sion": "ZH AH N", "ough": "AO", "augh": "AO", "eigh": "EY", "tch": "CH", "sch": "SH", "igh": "AY", "dg": "JH",
    "ch": "CH", "sh": "SH", "th": "TH", "ph": "F", "wh": "W", "ck": "K", "gh": "G", "kn": "N", "wr": "R", "qu": "K W", "ng": "NG",
    "ee": "IY", "ea": "IY", "oo": "UW", "ou": "AW", "ow": "OW", "oa": "OW", "oi": "OY", "oy": "OY", "ai": "EY", "ay": "EY", "ei": "IY",
    "ey": "IY", "ie": "IY", "au": "AO", "aw": "AO", "eu": "Y UW", "ew": "UW", "ue": "UW", "ui": "UW", "ar": "AA R", "er": "ER",
    "ir": "ER", "or": "AO R", "ur": "ER", "x": "K S", "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH",
    "i": "IH", "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T", "u": "AH",
    "v": "V", "w": "W", "y": "IY", "z": "Z",
}  # fmt: skip
_SOFT = {"ce": "S", "ci": "S", "cy": "S", "ge": "JH", "gi": "JH"}


def readings(token: str, lookup: Lookup) -> list[str]:
    """The ways in which a token without blanks may be said, likeliest first, as phones; empty where it has nothing to say."""
    text = "".join(char for char in unicodedata.normalize("NFKD", token) if not unicodedata.combining(char)).replace(
        "’", "'"
    )
    lower = text.lower().strip("'")
    bare = re.sub(r"[^a-z0-9']", "", lower).strip("'")
    options: list[list[str]] = []
    if known := lookup(bare):
        options.append([known])
    if re.fullmatch(r"(?:[A-Za-z]\.)+[A-Za-z]?|[A-Z]{2,5}s?", text.strip(',;:!?"()')):
        options.append([" ".join(_LETTERS[char] for char in bare if char in _LETTERS)])
    pieces = _PIECE.findall(lower)
    if pieces and (len(pieces) > 1 or not known):
        options += (list(phones) for phones in product(*(_sounds(piece, lookup) for piece in pieces)))
    said = (" ".join(part for part in option if part) for option in islice(options, 4 * MOST_READINGS))
    return list(islice(dict.fromkeys(filter(None, said)), MOST_READINGS))


def _sounds(piece: str, lookup: Lookup) -> list[str]:
    """The readings of a word, a number or a sign."""
    if piece in _SIGNS:
        return [_phrase(_SIGNS[piece], lookup)]
    if any(char.isdigit() for char in piece):
        return [_phrase(text, lookup) for text in number_readings(piece)]
    if piece in _SHORT:
        return [_phrase(_SHORT[piece], lookup), *filter(None, [lookup(piece)])]
    return [lookup(piece) or guess(piece, lookup)]


def _phrase(text: str, lookup: Lookup) -> str:
    return " ".join(lookup(word) or spelled(word) for word in text.split())


def number_readings(text: str) -> list[str]:
    """What people say for ``1999``, ``21st``, ``2.5``, ``$20``, ``90s``, ``007``, as words."""
    match = re.fullmatch(r"([$€£]?)([\d,]+)(?:\.(\d+))?(st|nd|rd|th|s)?", text)
    if match is None:
        return []
    sign, whole, fraction, ending = match.groups()
    digits = whole.replace(",", "")
    by_digit = " ".join(_UNITS[int(digit)] for digit in digits)
    if len(digits) > LONGEST_NUMBER:
        return [by_digit]
    found = [cardinal(int(digits))] if digits[0] != "0" or digits == "0" else []
    if len(digits) in (3, 4) and digits[0] != "0":
        found.append(_in_pairs(digits))
    if len(digits) > 1 and not ending:
        found += [by_digit, by_digit.replace("zero", "oh")]
    if len(digits) == 1 == int(digits) and not ending:
        found.append("a")
    if digits[0] != "0" and int(digits) > 100 and int(digits) % 100:
        found.insert(1, cardinal(int(digits), joined="and"))
    found = [one for one in dict.fromkeys(found or [by_digit]) if one]
    if fraction:
        tail = " point " + " ".join(_UNITS[int(digit)] for digit in fraction)
        found = [one + tail for one in found]
    if ending in ("st", "nd", "rd", "th"):
        found = [_ordinal(one) for one in found]
    elif ending == "s":
        found = [one[:-1] + "ies" if one.endswith("y") else one + "s" for one in found]
    money = {"$": ("dollar", "dollars"), "€": ("euro", "euros"), "£": ("pound", "pounds")}.get(sign)
    return [f"{one} {money[0] if one in ('one', 'a') else money[1]}" if money else one for one in found]


def cardinal(number: int, joined: str = "") -> str:
    """``1234`` -> ``one thousand two hundred thirty four``; ``joined`` is said before the tens ("and")."""
    for scale, name in _SCALES:
        if number >= scale:
            high, rest = divmod(number, scale)
            words = f"{cardinal(high, joined)} {name}"
            between = f" {joined} " if joined and 0 < rest < 100 else " "
            return words + (between + cardinal(rest, joined) if rest else "")
    if number < 20:
        return _UNITS[number]
    tens, unit = divmod(number, 10)
    return _TENS[tens] + (f" {_UNITS[unit]}" if unit else "")


def _in_pairs(digits: str) -> str:
    """``1999`` -> ``nineteen ninety nine``, ``1905`` -> ``nineteen oh five``, ``1900`` -> ``nineteen hundred``."""
    high, low = int(digits[:-2]), digits[-2:]
    if low == "00":
        return f"{cardinal(high)} hundred"
    return f"{cardinal(high)} {'oh ' + _UNITS[int(low[1])] if low[0] == '0' else cardinal(int(low))}"


def _ordinal(cardinal_words: str) -> str:
    *before, last = cardinal_words.split()
    regular = last[:-1] + "ieth" if last.endswith("y") else last + "th"
    return " ".join([*before, _ORDINALS.get(last, regular)])


def guess(word: str, lookup: Lookup) -> str:
    """The phones of an unknown word: an ending on a known word, two known words, else letter by letter."""
    return _inflected(word, lookup) or _compound(word, lookup) or spelled(word)


def _inflected(word: str, lookup: Lookup) -> str | None:
    stem = re.sub(r"'s?$", "", word)
    for ending, phones, replaced in _endings(word):
        base = lookup(word.removesuffix(ending) + replaced) if word.endswith(ending) else None
        if base:
            return f"{base} {phones}"
    return lookup(stem) if stem != word else None


def _endings(word: str) -> Iterator[tuple[str, str, str]]:
    hiss = "IH Z" if re.search(r"(s|x|z|ch|sh)(e?s|'s)$", word) else "S" if re.search(r"[ptkf](e?s|'s)$", word) else "Z"
    yield from (("'s", hiss, ""), ("s", hiss, ""), ("es", hiss, ""), ("ies", "Z", "y"))
    yield from (("ing", "IH NG", ""), ("ing", "IH NG", "e"), ("ed", "D", ""), ("ed", "D", "e"), ("ly", "L IY", ""))
    yield from (
        ("er", "ER", ""),
        ("er", "ER", "e"),
        ("ness", "N AH S", ""),
        ("less", "L AH S", ""),
        ("est", "AH S T", ""),
    )


def _compound(word: str, lookup: Lookup) -> str | None:
    for place in range(len(word) - 3, 2, -1):
        first, second = lookup(word[:place]), lookup(word[place:])
        if first and second:
            return f"{first} {second}"
    return None


def spelled(word: str) -> str:
    """Letter by letter, by the usual sounds of spellings; a silent last e, and doubled letters once."""
    word = re.sub(
        r"(.)\1", lambda two: two.group() if two.group() in ("ee", "oo") else two.group(1), re.sub("[^a-z]", "", word)
    )
    if len(word) > 2 and word.endswith("e") and word[-2] not in "aeiou":
        word = word[:-1] + ("'" if word[-2] in "cg" else "")
    phones = []
    place = 0
    while place < len(word):
        soft = _SOFT.get(word[place : place + 2]) or (
            _SOFT.get(word[place] + "e") if word[place + 1 : place + 2] == "'" else None
        )
        if soft:
            phones.append(soft)
            place += 1
            continue
        for length in (4, 3, 2, 1):
            if found := _SPELLINGS.get(word[place : place + length]):
                phones.append(found)
                place += length
                break
        else:
            place += 1
    return " ".join(phones)
