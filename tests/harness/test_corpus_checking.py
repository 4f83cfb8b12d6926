"""Every kind of damage to a corpus is found, at its row."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from harness import corpus

GOOD = {
    "text": "Hello, world!",
    "words": [{"text": "Hello", "start": 0.1, "end": 0.4}, {"text": "world", "start": 0.4, "end": 0.9}],
}


def manifest(folder: Path, *changes: dict[str, Any]) -> Path:
    """One row for each change to a row in which nothing is wrong; each has a one-second file of its own."""
    rows = []
    for number, change in enumerate(changes, 1):
        path = folder / f"{number}.flac"
        soundfile.write(path, np.full(16_000, number, np.int16), 16_000)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        rows.append({"id": f"u{number}", "audio": path.name, "seconds": 1.0, "sha256": digest, **GOOD, **change})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return folder


def word(text: str, start: float, end: float) -> dict[str, Any]:
    return {"text": text, "start": start, "end": end}


def test_a_good_corpus_has_no_findings_and_is_counted(tmp_path: Path) -> None:
    seen: list[int] = []
    findings = corpus.check(manifest(tmp_path, {}, {"speaker": "ann"}, {"text": "", "words": []}), progress=seen.append)
    assert findings.ok
    assert (findings.utterances, findings.seconds, findings.speakers, findings.timed_words) == (3, 3.0, 1, 4)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"audio": "gone.flac"}, "no such audio file: "),
        ({"sha256": "00"}, "the manifest says 00"),
        ({"seconds": 1.5}, "decodes to 1.000 s, but is said to last 1.500 s"),
        ({"seconds": 0.92}, "decodes to 1.000 s, but is said to last 0.920 s"),
        ({"text": "word " * 30, "words": None}, "odd length: 150 characters in 1.00 s"),
        (
            {"words": [word("Hello", 0.1, 0.4), word("world", 0.9, 0.8)]},
            "word 2 ('world', 0.900 to 0.800 s) ends before it starts",
        ),
        (
            {"words": [word("Hello", -0.1, 0.4), word("world", 0.4, 0.9)]},
            "word 1 ('Hello', -0.100 to 0.400 s) lies outside",
        ),
        ({"words": [word("Hello", 0.1, 0.4), word("world", 0.4, 1.1)]}, "lies outside the audio of 1.000 s"),
        (
            {"words": [word("Hello", 0.5, 0.9), word("world", 0.1, 0.4)]},
            "word 2 ('world', 0.100 to 0.400 s) starts before",
        ),
        (
            {"words": [word("Hello", 0.1, 0.4)]},
            "words are not those of the text: 1 against 2, first at word 2: nothing against 'world'",
        ),
        ({"words": [word("Jello", 0.1, 0.4), word("world", 0.4, 0.9)]}, "first at word 1: 'jello' against 'hello'"),
        ({"id": "u1"}, "id 'u1' again"),
        ({"text": None}, "no 'text'"),
    ],
)
def test_damage_is_found_once_at_its_row_and_the_rest_is_still_looked_at(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    findings = corpus.check(manifest(tmp_path, {}, change, {}))
    assert len(findings.problems) == 1
    assert what in findings.problems[0].what
    assert findings.problems[0].where == f"{tmp_path / 'manifest.jsonl'}:2"


def test_changed_audio_of_the_same_length_is_found_by_its_hash(tmp_path: Path) -> None:
    manifest(tmp_path, {})
    soundfile.write(tmp_path / "1.flac", np.full(16_000, 9, np.int16), 16_000)
    (problem,) = corpus.check(tmp_path).problems
    assert "sha256 is" in problem.what
    assert corpus.check(tmp_path, decode=False).ok


def test_audio_that_does_not_decode_is_found(tmp_path: Path) -> None:
    (manifest(tmp_path, {}) / "1.flac").write_bytes(b"not audio")
    assert [("sha256 is" in p.what, "1.flac: no samples in it" in p.what) for p in corpus.check(tmp_path).problems] == [
        (True, False),
        (False, True),
    ]


def test_an_odd_length_is_found(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(800, np.int16), 16_000)
    (tmp_path / "a.txt").touch()
    (problem,) = corpus.check(tmp_path).problems
    assert problem.what == "odd length: 0.050 s"


def test_two_words_in_a_long_recording_are_odd_but_not_in_a_short_one(tmp_path: Path) -> None:
    for name, seconds in (("short", 5), ("long", 13)):
        soundfile.write(tmp_path / f"{name}.wav", np.ones(seconds * 16_000, np.int16), 16_000)
        (tmp_path / f"{name}.txt").write_text("hello world")
    (problem,) = corpus.check(tmp_path).problems
    assert (problem.utterance, problem.what.partition(";")[0]) == ("long", "odd length: 11 characters in 13.00 s")


def test_parts_that_do_not_add_up_are_found(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    manifest(tmp_path / "source", {"seconds": 1.25})
    (tmp_path / "long").mkdir()
    row = {"id": "long", "parts": [{"from": "source", "id": "u1", "gap": 0.5}]}
    (tmp_path / "long" / "manifest.jsonl").write_text(json.dumps(row), "utf-8")
    (problem,) = corpus.check(tmp_path / "long").problems
    assert problem.what == "its parts decode to 1.500 s together, but are said to last 1.750 s"


def test_a_corpus_of_nothing_usable_says_so(tmp_path: Path) -> None:
    findings = corpus.check(manifest(tmp_path, {"audio": "gone.flac"}))
    assert findings.utterances == 0
    assert [problem.what for problem in findings.problems][-1] == "no utterance that can be used"


def test_a_finding_reads_as_a_line() -> None:
    assert str(corpus.Finding("m.jsonl:3", "u3", "odd length")) == "m.jsonl:3: u3: odd length"
    assert str(corpus.Finding("m.jsonl", "", "nothing")) == "m.jsonl: nothing"
