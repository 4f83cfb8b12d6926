"""The speech sounds of every word, and about when each is heard within a word of known length.

They are taught to the encoder beside its task: forty sounds, heard all the time, are learned far sooner than words that
are said once. Nothing of this is in the finished model. The pronunciations are those of the CMU Pronouncing Dictionary
(http://www.speech.cs.cmu.edu/cgi-bin/cmudict, BSD licence), without stress.
"""

from __future__ import annotations

from types import MappingProxyType

_TEXT = """
    zero Z IH R OW | oh OW | one W AH N | two T UW | three TH R IY | four F AO R | five F AY V | six S IH K S |
    seven S EH V AH N | eight EY T | nine N AY N | ten T EH N | eleven IH L EH V AH N | twelve T W EH L V |
    thirteen TH ER T IY N | fourteen F AO R T IY N | fifteen F IH F T IY N | sixteen S IH K S T IY N |
    seventeen S EH V AH N T IY N | eighteen EY T IY N | nineteen N AY N T IY N | twenty T W EH N T IY |
    thirty TH ER D IY | forty F AO R T IY | fifty F IH F T IY | sixty S IH K S T IY | seventy S EH V AH N T IY |
    eighty EY T IY | ninety N AY N T IY | hundred HH AH N D R AH D | thousand TH AW Z AH N D | point P OY N T |
    minus M AY N AH S | plus P L AH S | percent P ER S EH N T | alpha AE L F AH | bravo B R AA V OW |
    charlie CH AA R L IY | delta D EH L T AH | echo EH K OW | foxtrot F AA K S T R AA T | golf G AA L F |
    hotel HH OW T EH L | india IH N D IY AH | juliet JH UW L IY EH T | kilo K IH L OW | lima L AY M AH | mike M AY K |
    november N OW V EH M B ER | oscar AO S K ER | papa P AA P AH | quebec K W AH B EH K | romeo R OW M IY OW |
    sierra S IY EH R AH | tango T AE NG G OW | uniform Y UW N AH F AO R M | victor V IH K T ER | whiskey W IH S K IY |
    yankee Y AE NG K IY | zulu Z UW L UW | january JH AE N Y UW EH R IY | february F EH B Y AH W EH R IY |
    march M AA R CH | april EY P R AH L | may M EY | june JH UW N | july JH UW L AY | august AA G AH S T |
    september S EH P T EH M B ER | october AA K T OW B ER | december D IH S EH M B ER | monday M AH N D IY |
    tuesday T UW Z D IY | wednesday W EH N Z D IY | thursday TH ER Z D EY | friday F R AY D IY |
    saturday S AE T ER D IY | sunday S AH N D EY | noon N UW N | midnight M IH D N AY T | half HH AE F |
    quarter K W AO R T ER | past P AE S T | morning M AO R N IH NG | evening IY V N IH NG | minutes M IH N AH T S |
    hours AW ER Z | next N EH K S T | dollars D AA L ER Z | euros Y UW R OW Z | pounds P AW N D Z | cents S EH N T S |
    north N AO R TH | south S AW TH | east IY S T | west W EH S T | degrees D IH G R IY Z | start S T AA R T |
    stop S T AA P | go G OW | turn T ER N | left L EH F T | right R AY T | up AH P | down D AW N | on AA N |
    off AO F | forward F AO R W ER D | backward B AE K W ER D | open OW P AH N | shut SH AH T | call K AO L |
    send S EH N D | set S EH T | play P L EY | pause P AO Z | wait W EY T | cancel K AE N S AH L |
    repeat R IH P IY T | move M UW V | show SH OW | help HH EH L P | yes Y EH S | no N OW | hello HH AH L OW |
    please P L IY Z | thanks TH AE NG K S | to T UW | for F AO R | at AE T | in IH N | the DH AH | and AH N D |
    of AH V | from F R AH M | is IH Z | my M AY | we W IY | ate EY T | door D AO R | light L AY T | timer T AY M ER |
    alarm AH L AA R M | message M EH S AH JH | number N AH M B ER | room R UW M | gate G EY T | channel CH AE N AH L |
    page P EY JH | table T EY B AH L | dinner D IH N ER
"""

PRONUNCIATIONS = MappingProxyType(
    {word: tuple(sounds) for word, *sounds in (entry.split() for entry in _TEXT.split("|"))}
)
SOUNDS: tuple[str, ...] = tuple(sorted({sound for sounds in PRONUNCIATIONS.values() for sound in sounds}))
_SHORT = frozenset("PTKBDG")
_VOWEL_LETTERS = frozenset("AEIOU")


def _relative_length(sound: str) -> float:
    return 1.5 if sound[0] in _VOWEL_LETTERS else 0.8 if sound in _SHORT else 1.0


def spans(word: str, start: float, end: float) -> list[tuple[int, float, float]]:
    """Index into SOUNDS, start and end of each sound of a word that lasts from ``start`` to ``end``, in the same unit.

    The borders are guesses: vowels are taken to be longer than stops, whatever the voice does.
    """
    sounds = PRONUNCIATIONS[word]
    lengths = [_relative_length(sound) for sound in sounds]
    scale = (end - start) / sum(lengths)
    result = []
    at = start
    for sound, length in zip(sounds, lengths, strict=True):
        result.append((_INDEX[sound], at, at + length * scale))
        at += length * scale
    return result


_INDEX = {sound: index for index, sound in enumerate(SOUNDS)}
