"""Word error rates of nano by delay and voice, in transformers, over the same frames, prompt and padding as the server's:

``python -m training.evaluate STATE --corpus FOLDER --delays 80,480 --out FILE``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from transformers import DynamicCache

from training.corpus import Clips
from training.examples import LEFT, LOOK_AHEAD, RIGHT, SAMPLE_RATE, STEP, Clip, Ears, Samples
from training.grammar import WORDS
from training.model import BOS_ID, EOS_ID, FIRST_WORD_ID, PAD_ID, POOL, Nano

STEP_MS = 80


@dataclass(frozen=True, slots=True)
class Said:
    """What the model said to one utterance: tokens of every step from the first that is not the prompt's."""

    first: int
    tokens: tuple[int, ...]

    @property
    def words(self) -> list[tuple[str, int]]:
        """Words, and after how many samples of the audio each was said."""
        return [
            (WORDS[token - FIRST_WORD_ID], (self.first + at + 1 - LEFT) * STEP + LOOK_AHEAD)
            for at, token in enumerate(self.tokens)
            if token >= FIRST_WORD_ID
        ]

    @property
    def text(self) -> str:
        return " ".join(word for word, _ in self.words)

    @property
    def ended(self) -> bool:
        """Whether it noticed that the recording is over."""
        return EOS_ID in self.tokens


@torch.no_grad()  # type: ignore[untyped-decorator]
def decode(nano: Nano, utterances: Sequence[Samples], delay: int, size: int = 64) -> list[Said]:
    """The likeliest token at every step, for samples in -1..1, at a delay in tokens."""
    order = sorted(range(len(utterances)), key=lambda number: len(utterances[number]))
    result: dict[int, Said] = {}
    for at in range(0, len(order), size):
        numbers = order[at : at + size]
        result |= zip(numbers, _decode_together(nano, [utterances[n] for n in numbers], delay), strict=True)
    return [result[number] for number in range(len(utterances))]


def _decode_together(nano: Nano, utterances: list[Samples], delay: int) -> list[Said]:
    steps = [(LEFT * STEP + len(samples) + (delay + RIGHT) * STEP - LOOK_AHEAD) // STEP for samples in utterances]
    logits = torch.stack(list(_steps(nano, utterances, delay, max(steps))), 1)
    return [
        Said(LEFT + delay, tuple(tokens[: count - LEFT - delay]))
        for tokens, count in zip(logits.argmax(-1).tolist(), steps, strict=True)
    ]


@torch.no_grad()  # type: ignore[untyped-decorator]
def log_probabilities(nano: Nano, samples: Samples, delay: int) -> torch.Tensor:
    """Of every token at every step of one utterance [steps, vocabulary], each step following the likeliest token before."""
    steps = (LEFT * STEP + len(samples) + (delay + RIGHT) * STEP - LOOK_AHEAD) // STEP
    return torch.cat(list(_steps(nano, [samples], delay, steps))).log_softmax(-1)


def _steps(nano: Nano, utterances: Sequence[Samples], delay: int, steps: int) -> Iterator[torch.Tensor]:
    """Logits [B, vocabulary] of one step after the other, from the first that is not the prompt's."""
    audio = heard(nano, utterances, delay, steps)
    decoder, head = nano.voxtral.model.language_model, nano.voxtral.lm_head
    prompt = 1 + LEFT + delay
    condition = nano.voxtral.model.time_embedding(torch.full((1,), float(delay), device=audio.device))[None].to(
        audio.dtype
    )
    given = torch.full((len(utterances), prompt), PAD_ID, device=audio.device)
    given[:, 0] = BOS_ID
    cache = DynamicCache(config=decoder.config)
    at = 0
    while at < steps:
        length = given.shape[1]
        hidden = decoder(
            inputs_embeds=decoder.embed_tokens(given) + audio[:, at : at + length],
            use_cache=True,
            past_key_values=cache,
            t_cond=condition,
        ).last_hidden_state
        logits = head(hidden[:, -1])
        yield logits
        given = logits.argmax(-1)[:, None]
        at += length


@torch.no_grad()  # type: ignore[untyped-decorator]
def heard(nano: Nano, utterances: Sequence[Samples], delay: int, steps: int) -> torch.Tensor:
    """Audio as the decoder gets it [B, steps, width].

    The server's first step sees a spectrogram of all it has; the later ones' frames lie 2.5 ms earlier, because each is
    computed from a piece that starts so. Both are computed here and joined where the convolutions have done with them.
    """
    device = next(nano.parameters()).device
    padded = np.zeros((len(utterances), steps * STEP + LOOK_AHEAD), np.float32)
    for row, samples in zip(padded, utterances, strict=True):
        row[LEFT * STEP : LEFT * STEP + len(samples)] = samples
    waveforms = torch.from_numpy(padded).to(device)
    ears = Ears(device)
    prompt = POOL * (1 + LEFT + delay)
    first = nano.embed(ears.mel(ears.power(waveforms)[..., : steps * 8]))
    shifted = torch.nn.functional.pad(waveforms, (LOOK_AHEAD, 0))
    later = nano.embed(ears.mel(ears.power(shifted)[..., : steps * 8]))
    return nano.encode(torch.cat((first[:, :prompt], later[:, prompt:]), 1))[0]


# ---- scores


def utterance(clip: Clip, random: np.random.Generator) -> tuple[Samples, int]:
    """A clip with some silence round it, and how many samples of it lie before."""
    before, behind = (round(random.uniform(0.2, 0.6) * SAMPLE_RATE) for _ in range(2))
    samples = clip.samples.astype(np.float32) / 32768
    return np.concatenate([np.zeros(before, np.float32), samples, np.zeros(behind, np.float32)]), before


def scored(clips: Sequence[Clip], said: Sequence[Said], before: Sequence[int]) -> dict[str, Any]:
    """Counts, rates, latencies and confusions of one cell."""
    references = [" ".join(word.text for word in clip.words) for clip in clips]
    output = jiwer.process_words(references, [one.text for one in said])
    confusions: Counter[str] = Counter()
    latencies = []
    by_voice: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for clip, one, skipped, chunks in zip(clips, said, before, output.alignments, strict=True):
        tally = by_voice[clip.voice]
        tally[1] += len(clip.words)
        for chunk in chunks:
            length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            tally[0] += length * (chunk.type != "equal")
            for offset in range(length):
                if chunk.type in ("insert", "delete"):
                    continue
                word = clip.words[chunk.ref_start_idx + offset]
                text, at = one.words[chunk.hyp_start_idx + offset]
                if chunk.type == "equal":
                    latencies.append(1000 * ((at - skipped) / SAMPLE_RATE - word.end_s))
                else:
                    confusions[f"{word.text} > {text}"] += 1
    total = output.hits + output.substitutions + output.deletions
    errors = output.substitutions + output.deletions + output.insertions
    return {
        "wer": round(100 * errors / max(total, 1), 2),
        "words": total,
        "substitutions": output.substitutions,
        "deletions": output.deletions,
        "insertions": output.insertions,
        "utterances": len(clips),
        "ended": sum(one.ended for one in said),
        "latency_p50_ms": round(float(np.percentile(latencies, 50))) if latencies else None,
        "latency_p95_ms": round(float(np.percentile(latencies, 95))) if latencies else None,
        "by_voice": {voice: round(100 * bad / max(all_, 1), 2) for voice, (bad, all_) in sorted(by_voice.items())},
        "confusions": confusions.most_common(20),
    }


def evaluate(nano: Nano, folder: Path, delays: Sequence[int], limit: int | None = None) -> dict[str, Any]:
    """By delay in milliseconds: what ``scored`` counts over spoken clips, and words per minute over the others."""
    clips = Clips(folder)
    everything = [clips[number] for number in range(len(clips))]
    spoken = _spread([clip for clip in everything if clip.words], limit)
    noises = _spread([clip for clip in everything if not clip.words], limit)
    random = np.random.default_rng(7)
    ready = [utterance(clip, random) for clip in spoken]
    cells: dict[str, Any] = {}
    for delay in delays:
        started = time.monotonic()
        cell = scored(spoken, decode(nano, [samples for samples, _ in ready], delay), [before for _, before in ready])
        if noises:
            said = decode(nano, [clip.samples.astype(np.float32) / 32768 for clip in noises], delay)
            minutes = sum(len(clip.samples) for clip in noises) / SAMPLE_RATE / 60
            cell["noise_words_per_minute"] = round(sum(len(one.words) for one in said) / minutes, 3)
        cell["seconds"] = round(time.monotonic() - started, 1)
        cells[str(delay * STEP_MS)] = cell
    return cells


def _spread(clips: list[Clip], limit: int | None) -> list[Clip]:
    """So many of them, from everywhere in the list."""
    if limit is None or len(clips) <= limit:
        return clips
    return [clips[round(at)] for at in np.linspace(0, len(clips) - 1, limit)]


def quick(nano: Nano, folder: Path, utterances: int = 48) -> dict[str, Any]:
    """A short look during training, at 480 ms."""
    (cell,) = evaluate(nano, folder, [6], utterances).values()
    return {name: cell.get(name) for name in ("wer", "words", "by_voice", "noise_words_per_minute", "ended", "seconds")}


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    from training.train import load_nano

    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--delays", default="80,160,240,480,960,2400", help="in milliseconds")
    parser.add_argument("--limit", type=int, help="utterances at most")
    parser.add_argument("--bfloat16", action="store_true", help="weights rounded as in the exported file")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    nano = load_nano(given.state)
    if given.bfloat16:
        with torch.no_grad():
            for tensor in nano.parameters():
                tensor.copy_(tensor.bfloat16().float())
    cells = evaluate(nano, given.corpus, [int(ms) // STEP_MS for ms in given.delays.split(",")], given.limit)
    for delay, cell in cells.items():
        print(f"{delay:>5} ms", {name: value for name, value in cell.items() if name != "confusions"})
    if given.out is not None:
        given.out.write_text(json.dumps(cells, indent=1))


if __name__ == "__main__":
    main()
