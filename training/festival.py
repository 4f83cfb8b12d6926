"""The voices of Festival, each in a process of its own that is spoken to in Scheme.

    apt-get install festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts \\
      festvox-italp16k festvox-itapc16k festlex-ifd festvox-suopuhe-lj festvox-suopuhe-mv \\
      festival-czech festvox-czech-dita festvox-czech-krb festvox-czech-machac festvox-czech-ph festival-hi festvox-hi-nsk

Speakers of other languages are strangers whom English voices do not offer: their recordings say English text here, the American
voice's sounds, durations and melody put through a table of the nearest sounds of their language, as somebody with an accent would.
"""

from __future__ import annotations

import atexit
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import NamedTemporaryFile
from types import MappingProxyType

import numpy as np

from training.speaking import Accent, Manner, Spoken, SpokenOtherwiseError, SynthesiserMissingError, replayed, written

# English front end up to the melody, then whichever recordings. ``sounds`` has, for each English sound, what is said for it: the
# first of two takes 60 % of the time. Words are timed before sounds are replaced, so that the tree of words need not be mended.
_SCHEME = """
(define (earmark-words utt)
  (mapcar (lambda (w) (list (item.name w) (item.feat w "word_start") (item.feat w "word_end"))) (utt.relation.items utt 'Word)))
(define (earmark-replace seg sounds)
  (let ((said (cdr (assoc_string (item.name seg) sounds))) (start (item.feat seg "segment_start")) (end (item.feat seg "end")))
    (if said
      (begin
        (item.set_name seg (car said))
        (if (cdr said)
          (begin
            (item.set_feat seg "end" (+ start (* 0.6 (- end start))))
            (item.insert seg (list (cadr said) (list (list "end" end))) 'after)))))))
(define (earmark-save utt words path)
  (wave.save (utt.wave utt) path 'raw "short")
  (format t "\\nsaid %s %l\\n" (cadr (assoc 'sample_rate (wave.info (utt.wave utt)))) words)
  (fflush nil))
(define (earmark-diphones text stretch mean swing sounds phones database path)
  (let ((utt (eval (list 'Utterance 'Text text))) (words nil))
    (PhoneSet.select 'radio)
    (Parameter.set 'Duration_Stretch stretch)
    (set! int_lr_params (list (list 'target_f0_mean mean) (list 'target_f0_std swing) '(model_f0_mean 170) '(model_f0_std 34)))
    (Initialize utt) (Text utt) (Token_POS utt) (Token utt) (POS utt) (Phrasify utt) (Word utt) (Pauses utt) (Intonation utt)
    (PostLex utt) (Duration utt) (Int_Targets utt)
    (set! words (earmark-words utt))
    (mapcar (lambda (seg) (earmark-replace seg sounds)) (utt.relation.items utt 'Segment))
    (if (not (equal? database earmark-database)) (begin (us_db_select database) (set! earmark-database database)))
    (PhoneSet.select phones) (Wave_Synth utt)
    (earmark-save utt words path)))
(define (earmark-hts text rate halftones path)
  (let ((utt (eval (list 'Utterance 'Text text))))
    (set! hts_engine_params (append (list (list "-r" rate) (list "-fm" halftones)) earmark-hts-params))
    (utt.synth utt)
    (earmark-save utt (earmark-words utt) path)))
(set! earmark-database nil)
(Parameter.set 'Phrase_Method 'cart_tree)
(set! phrase_cart_tree '((lisp_token_end_punc in (",")) ((BB)) ((n.name is 0) ((BB)) ((NB)))))
"""


def _table(text: str) -> dict[str, str]:
    """What is said for each English sound; one without a colon stays as it is, a later entry counts more."""
    entries = (entry.split(":", 1) for entry in text.split())
    return {entry[0]: entry[-1] for entry in entries}


_CONSONANTS = "b d f g k l m n p r s t v z"
_ITALIAN = _table(
    f"""
{_CONSONANTS} aa:a ae:E ah:a ao:O aw:a+u ax:a axr:E+r ay:a+i ch:tS dh:d dx:r eh:E el:o+l em:e+m en:e+n er:E+r ey:e+i hh:# ih:i
iy:i jh:dZ ng:n nx:n ow:o+u oy:O+i sh:S th:t uh:u uw:u w:u y:j zh:dZ pau:#
"""
)
_FINNISH = _table(
    f"""
{_CONSONANTS} z:s aa:a: ae:@ ah:a ao:o: aw:a+u ax:a axr:7+r ay:a+i ch:t+s dh:d dx:d eh:e el:o+l em:e+m en:e+n er:7+r ey:e+i hh:h ih:i
iy:i: jh:d+j ng:N nx:n ow:o+u oy:o+i sh:s th:t uh:u uw:u: w:v y:j zh:s pau:#
"""
)
_CZECH = _table(
    f"""
{_CONSONANTS} aa:a ae:e ah:a ao:o aw:a+u ax:e axr:e+r ay:a+j ch:c~ dh:d dx:d eh:e el:e+l em:e+m en:e+n er:e+r ey:e+j hh:h ih:i
iy:i jh:dz~ ng:n nx:n ow:o+u oy:o+j sh:s~ th:t uh:u uw:u w:v y:j zh:z~ pau:#
"""
)
_HINDI = _table(
    f"""
{_CONSONANTS} d:D t:T z:j aa:aa ae:ay ah:a ao:aw aw:aa+uh ax:a axr:a+r ay:aa+ih ch:ch dh:D dx:D eh:eh el:a+l em:a+m en:a+n er:a+r ey:ee hh:h
ih:ih iy:iy jh:j ng:n nx:n ow:oo oy:aw+ih sh:sh th:th uh:uh uw:uw w:v y:y zh:sh pau:pau
"""
)


# How English is said elsewhere, one sound for another; a speaker has some of these habits (`Manner.accent`).
HABITS: Accent = tuple(
    (entry.split(":")[0], entry.split(":")[1])
    for entry in """
    ae:aa ae:eh ah:ax ah:aa ah:uh ao:aa ao:ow ey:eh ey:eh+iy ow:ao ow:ax+uw ow:aa+uh uw:uh uh:uw ih:iy ih:ax iy:ih eh:ae er:ax er:eh+r
    er:ao+r ax:ih ax:ah ay:aa+iy ay:ah+iy ay:aa aw:ah+uw oy:ao+iy th:t th:f th:s dh:d dh:z w:v v:w v:f z:s s:z dx:t t:dx d:t r:w l:w
    hh:k ng:n jh:zh ch:sh y:iy
    """.split()  # noqa: SIM905 - pairs are read more easily without quotes
)


def _scheme(sounds: dict[str, str], accent: Accent) -> str:
    """The table as a list of lists; the habits of an accent count more."""
    entries = (
        f'("{sound}" "{said.replace("+", chr(34) + " " + chr(34))}")' for sound, said in (sounds | dict(accent)).items()
    )
    return f"({' '.join(entries)})"


@dataclass(frozen=True, slots=True)
class Recordings:
    """Diphones of one speaker: the Scheme function that loads them, their names there, and the pitch of the speaker."""

    load: str
    database: str
    phones: str
    sounds: dict[str, str]
    pitch_hertz: float
    package: str


_AMERICAN: dict[str, str] = {}
_HTS = "hts"
RECORDINGS: Mapping[str, Recordings] = MappingProxyType(
    {
        "kal": Recordings("voice_kal_diphone", "kal_lpc_group", "radio", _AMERICAN, 105, "festvox-kallpc16k"),
        "ked": Recordings("voice_ked_diphone", "ked_lpc_group", "radio", _AMERICAN, 105, "festvox-kdlpc16k"),
        "slt-hts": Recordings("voice_cmu_us_slt_arctic_hts", _HTS, "radio", _AMERICAN, 170, "festvox-us-slt-hts"),
        "lp": Recordings("voice_lp_diphone", "lp_lpc_group", "italian", _ITALIAN, 180, "festvox-italp16k"),
        "pc": Recordings("voice_pc_diphone", "pc_lpc_group", "italian", _ITALIAN, 110, "festvox-itapc16k"),
        "lj": Recordings("voice_suo_fi_lj_diphone", "lj_lpc_group", "finnish", _FINNISH, 180, "festvox-suopuhe-lj"),
        "mv": Recordings("voice_hy_fi_mv_diphone", "mv_lpc_group", "finnish", _FINNISH, 105, "festvox-suopuhe-mv"),
        "dita": Recordings("voice_czech_dita", "czech_dita", "czech", _CZECH, 180, "festvox-czech-dita"),
        "krb": Recordings("voice_czech_krb", "czech_krb", "czech", _CZECH, 250, "festvox-czech-krb"),
        "machac": Recordings("voice_czech_machac", "czech_machac", "czech", _CZECH, 110, "festvox-czech-machac"),
        "ph": Recordings("voice_czech_ph", "czech_ph", "czech", _CZECH, 100, "festvox-czech-ph"),
        "nsk": Recordings("voice_hindi_NSK_diphone", "NSK_lpc_group", "hindi", _HINDI, 120, "festvox-hi-nsk"),
    }
)


class _DiedError(Exception):
    """Festival ended: there are sequences of sounds that it crashes at."""


class _Process:
    """One running Festival."""

    def __init__(self, recordings: Recordings) -> None:
        try:
            self._festival = subprocess.Popen(
                ["festival", "--pipe"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except FileNotFoundError as error:
            raise SynthesiserMissingError("festival is not installed; on Debian: apt-get install festival") from error
        atexit.register(self.close)
        if self.ask(f"({recordings.load}) (print 'loaded)")[-1:] != ["loaded"]:
            raise SynthesiserMissingError(f"festival lacks a voice; on Debian: apt-get install {recordings.package}")
        if recordings.phones != "radio":  # the front end stays American, without its special joints of consonants
            self.ask("(voice_kal_diphone) (set! UniSyn_module_hooks nil)")
        self.ask("(set! earmark-hts-params (if (symbol-bound? 'hts_engine_params) hts_engine_params nil))")
        self.ask(_SCHEME)

    def ask(self, scheme: str) -> list[str]:
        """Has it evaluate that; the lines that it prints meanwhile, none where an error broke it off."""
        assert self._festival.stdin is not None
        assert self._festival.stdout is not None
        lines = []
        try:
            self._festival.stdin.write(scheme + '\n(format t "\\ndone\\n") (fflush nil)\n')
            self._festival.stdin.flush()
            while (line := self._festival.stdout.readline()) and line != "done\n":
                lines.append(line.strip())
        except BrokenPipeError:
            line = ""
        if not line:
            raise _DiedError
        return [line for line in lines if line]

    def close(self) -> None:
        """Ends it."""
        self._festival.kill()
        self._festival.communicate()


_running: dict[tuple[str, int], _Process] = {}  # by voice and process: after a fork, two must not talk to one Festival


def _ask(name: str, scheme: str) -> list[str]:
    """Asks the Festival of that voice, which is started when it is not running."""
    key = name, os.getpid()
    if key not in _running:
        _running[key] = _Process(RECORDINGS[name])
    try:
        return _running[key].ask(scheme)
    except _DiedError:
        _running.pop(key).close()
        return []


@dataclass(frozen=True, slots=True)
class Festival:
    """One voice."""

    name: str

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        """Says the words."""
        recordings, text = RECORDINGS[self.name], written(words, manner)
        duration, pitch = manner.duration * manner.formants, manner.pitch / manner.formants
        with NamedTemporaryFile(prefix="earmark-festival-") as sound:
            if recordings.database == _HTS:
                halftones = 12 * np.log2(pitch)
                said = _ask(self.name, f'(earmark-hts "{text}" {1 / duration:.4f} {halftones:.4f} "{sound.name}")')
            else:
                mean = recordings.pitch_hertz * pitch
                sounds = _scheme(recordings.sounds, manner.accent if recordings.phones == "radio" else ())
                said = _ask(
                    self.name,
                    f'(earmark-diphones "{text}" {1.1 * duration:.4f} {mean:.2f} {0.14 * mean * manner.melody:.2f}'
                    f" '{sounds} '{recordings.phones} '{recordings.database} \"{sound.name}\")",
                )
            samples = np.fromfile(sound.name, np.int16).astype(np.float32) / np.float32(32_768)
        found = re.findall(r'\("([^"]*)" ([-\d.e]+) ([-\d.e]+)\)', " ".join(said))
        rate = re.search(r"said (\d+)", " ".join(said))
        if rate is None or [word for word, _, _ in found] != text.replace(",", "").split():
            raise SpokenOtherwiseError(f"{self.name} said {said}, not {text!r}")
        times = [(float(start), float(end)) for _, start, end in found]
        return replayed(samples, float(rate[1]), times, manner.formants)


FESTIVAL = {name: Festival(name) for name in RECORDINGS}
