"""All voices by name, and how much of the training corpus each speaks; `SPEAKERS_FOR_TESTS` are never trained on."""

from __future__ import annotations

from training.espeak import Espeak
from training.festival import FESTIVAL
from training.flite import FLITE
from training.speaking import Voice

SPEAKERS_FOR_TESTS = ("awb",)  # flite's Scottish speaker; no other synthesis of his voice is among these either
# Shares of the sound. The best recordings speak most; every other speaker is there for the sake of strangers.
TRAINED_ON = (
    {"slt": 1.0, "rms": 1.0, "kal16": 0.5}  # flite
    | {"slt-hts": 0.5, "kal": 0.35, "ked": 0.6}  # festival, American
    | dict.fromkeys(("lp", "pc", "lj", "mv", "dita", "krb", "machac", "ph", "nsk"), 0.09)  # festival, with an accent
    | {"espeak": 0.6}
)


def voice_named(name: str) -> Voice:
    """The voice of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    voices: dict[str, Voice] = {**FLITE, **FESTIVAL, "espeak": Espeak()}
    if name not in voices:
        raise ValueError(f"no voice is called {name!r}; there are {', '.join(voices)}")
    return voices[name]
