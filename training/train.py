"""Trains nano: ``python -m training.train --corpus FOLDER --out FOLDER --minutes 150``. Stopped and started again, it goes on.

The budget is in minutes of processor time of each core (on an accelerator: of time), kept in the state over any number of runs, so that
others who use the machine make a run longer but not worse. The learning rate is flat until the last ``--decay-minutes`` of it; the state
from before that is kept too (``flat.pt``), to be trained on with a larger budget. Clips that come into the corpus meanwhile are used.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn import functional

from training.augment import Augment
from training.corpus import Clips
from training.examples import IGNORED, Batch, Examples, Pool
from training.grammar import WORDS
from training.model import EOS, FIRST_WORD, PAD, TOKENS, WORD, Nano, Shape
from training.optimise import Optimiser

WARM_UP_STEPS = 60
SAVE_SECONDS = 180.0
LOG_STEPS = 20
LOOK_STEPS = 100  # after so many the corpus is looked at again
AUXILIARY = 0.5
"""Weight of the two losses on the encoder, which fades with the learning rate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is asked to do. ``size`` is examples per rank, ``delays`` how many delays each of them is learned at."""

    corpus: Path
    out: Path
    development: Path | None
    minutes: float
    decay_minutes: float
    steps: int | None
    seed: int
    device: str
    ranks: int
    threads: int
    size: int
    delays: int
    tokens: int
    compiled: bool
    evaluate_minutes: float
    augmented: bool
    shape: Shape


# ---- what is minimised


def losses(nano: Nano, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the tokens, of the two extra heads, and the tokens that were said [K B, T]."""
    return _losses(nano, *_tensors(batch, nano))


def _tensors(batch: Batch, nano: Nano) -> tuple[Tensor, ...]:
    precise = next(nano.parameters()).dtype
    dtype = torch.bfloat16 if precise == torch.float32 else precise
    return (
        batch.mel.to(dtype), batch.present.to(dtype), batch.given, batch.targets, batch.delays, batch.sounds, batch.ended
    )  # fmt: skip


def _losses(
    nano: Nano,
    mel: Tensor,
    present: Tensor,
    given: Tensor,
    targets: Tensor,
    delays: Tensor,
    sounds: Tensor,
    ended: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    audio, frames = nano.hear(mel, present, continued=True)
    repeats, _, length = given.shape
    unheard = length - audio.shape[1]  # of the left padding: all of it sounds alike
    whole = torch.cat((audio[:, 1:2].expand(-1, unheard, -1), audio), 1)
    hidden = nano.say(whole.repeat(repeats, 1, 1), given.flatten(0, 1), delays.flatten())
    scores = nano.scores(hidden).flatten(0, 1)
    weights = torch.ones(TOKENS + 1, device=scores.device)
    weights[PAD] = 0.3
    weights[EOS] = 0.5
    tokens = functional.cross_entropy(scores, targets.flatten(), weight=weights, ignore_index=IGNORED)
    heard = functional.linear(frames, nano.sounds.weight.to(frames.dtype), nano.sounds.bias.to(frames.dtype)).float()
    sound = functional.cross_entropy(heard.flatten(0, 1), sounds.flatten(), label_smoothing=0.05)
    over = functional.linear(audio, nano.ended.weight.to(audio.dtype), nano.ended.bias.to(audio.dtype)).float()
    quiet = torch.ones(1 + len(WORDS), device=scores.device)
    quiet[0] = 0.3
    word = functional.cross_entropy(over.flatten(0, 1), ended.flatten(), weight=quiet)
    return tokens, sound, word, scores.argmax(-1)


@dataclass(slots=True)
class Tally:
    """What was seen since the last line of the log."""

    steps: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    sound: float = 0.0
    ended: float = 0.0
    words: int = 0
    right_words: int = 0
    marks: int = 0
    right_marks: int = 0
    data_time: float = 0.0

    def add(self, batch: Batch, parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        targets = batch.targets.flatten()
        right = parts[3] == targets
        self.steps += 1
        self.tokens += float(parts[0])
        self.sound += float(parts[1])
        self.ended += float(parts[2])
        self.words += int((targets >= FIRST_WORD).sum())
        self.right_words += int(right[targets >= FIRST_WORD].sum())
        self.marks += int((targets == WORD).sum())
        self.right_marks += int(right[targets == WORD].sum())

    @property
    def data_ms(self) -> float:
        """Of a step, what making the batch takes."""
        return round(1000 * self.data_time / max(self.steps, 1), 1)

    def line(self) -> dict[str, float]:
        """Means, for the log."""
        steps = max(self.steps, 1)
        return {
            "token_loss": round(self.tokens / steps, 4),
            "sound_loss": round(self.sound / steps, 4),
            "ended_loss": round(self.ended / steps, 4),
            "word_accuracy": round(self.right_words / max(self.words, 1), 4),
            "mark_accuracy": round(self.right_marks / max(self.marks, 1), 4),
        }


# ---- the schedule and the state


def rate_scale(step: int, minutes: float, plan: Plan) -> float:
    """Between 0 and 1: up over the first steps, flat, down to nothing over the last minutes."""
    up = min(1.0, (step + 1) / WARM_UP_STEPS)
    left = plan.minutes - minutes
    return up * max(0.0, min(1.0, left / plan.decay_minutes)) if plan.decay_minutes else up


@dataclass(slots=True)
class Progress:
    """How far the training has come."""

    step: int = 0
    minutes: float = 0.0
    wall_minutes: float = 0.0
    audio_seconds: float = 0.0


def save(path: Path, nano: Nano, optimiser: Optimiser, progress: Progress, plan: Plan) -> None:
    """Replace the file at once, so that there is a whole one at any time."""
    content = {
        "weights": nano.state_dict(),
        "optimiser": optimiser.state(),
        "progress": asdict(progress),
        "shape": asdict(plan.shape),
        "seed": plan.seed,
    }
    beside = path.with_suffix(".new")
    torch.save(content, beside)
    os.replace(beside, path)


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What ``save`` wrote."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content


def load_nano(path: Path, device: str = "cpu") -> Nano:
    """The model of a state, ready to be used."""
    content = load(path, device)
    nano: Nano = Nano(Shape(**content["shape"])).to(device)
    nano.load_state_dict(content["weights"])
    nano.eval()
    return nano


# ---- the run


def train(plan: Plan) -> None:
    """Train in this process, and in others that follow it on machines without an accelerator."""
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.ranks == 1:
        _Run(plan, 0, 0).go()
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    followers = [context.Process(target=_follow, args=(plan, rank, port), daemon=True) for rank in range(1, plan.ranks)]
    for follower in followers:
        follower.start()
    _Run(plan, 0, port).go()
    for follower in followers:
        follower.join(30)


def _follow(plan: Plan, rank: int, port: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first rank says when it is over
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _Run(plan, rank, port).go()


class _Run:
    def __init__(self, plan: Plan, rank: int, port: int) -> None:
        self._plan = plan
        self._rank = rank
        self._asked_to_stop = False
        torch.manual_seed(plan.seed)
        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
            torch.set_flush_denormal(True)
        if plan.ranks > 1:
            distributed.init_process_group(
                "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=plan.ranks
            )
        self._nano = Nano(plan.shape).to(plan.device)
        self._optimiser = Optimiser(self._nano)
        self._progress = Progress()
        self._state_path = plan.out / "state.pt"
        if self._state_path.exists():
            self._resume()
        self._shards = 0
        self._look_for_clips()
        self._losses: Callable[..., tuple[Tensor, ...]] = (
            torch.compile(_losses, dynamic=False) if plan.compiled else _losses
        )
        self._flat_kept = (plan.out / "flat.pt").exists()

    def _look_for_clips(self) -> None:
        """Take up what the corpus has now."""
        shards = len(list(self._plan.corpus.glob("*.parquet")))
        if shards != self._shards or not shards:
            self._shards = shards
            self._examples = _examples(self._plan)

    def _resume(self) -> None:
        content = load(self._state_path, self._plan.device)
        if content["shape"] != asdict(self._plan.shape):
            raise SystemExit(f"{self._state_path} is of another shape ({content['shape']}): choose another --out")
        self._nano.load_state_dict(content["weights"])
        self._optimiser.load(content["optimiser"])
        self._progress = Progress(**content["progress"])

    def go(self) -> None:
        plan, progress = self._plan, self._progress
        if self._rank == 0:
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGINT, self._stop)
            count = sum(tensor.numel() for tensor in self._nano.voxtral.parameters())
            print(f"{count:,} parameters, from step {progress.step}, minute {progress.minutes:.1f}", flush=True)
        clock = time.process_time if plan.device == "cpu" else time.monotonic
        began, before = clock(), progress.minutes
        wall_began, wall_before = time.monotonic(), progress.wall_minutes
        saved, evaluated = wall_began, progress.minutes
        tally = Tally()
        while True:
            if self._rank == 0:
                progress.minutes = before + (clock() - began) / 60
                progress.wall_minutes = wall_before + (time.monotonic() - wall_began) / 60
            over, scale = self._agree()
            if over:
                break
            if scale < 1 and progress.step > WARM_UP_STEPS and not self._flat_kept:
                self._flat_kept = True
                self._keep("flat.pt")
            if progress.step % LOOK_STEPS == 0:
                self._look_for_clips()
            self._step(tally, scale)
            if self._rank:
                continue
            if progress.step % LOG_STEPS == 0:
                self._log({"rate": round(scale, 4), "shards": self._shards, **tally.line(), "data_ms": tally.data_ms})
                tally = Tally()
            if time.monotonic() - saved > SAVE_SECONDS:
                saved = time.monotonic()
                self._keep("state.pt")
            if plan.development is not None and progress.minutes - evaluated >= plan.evaluate_minutes:
                evaluated = progress.minutes
                self._evaluate()
        if self._rank == 0:
            self._keep("state.pt")
            print(f"stopped at step {progress.step}, minute {progress.minutes:.1f}", flush=True)
        if plan.ranks > 1:
            distributed.destroy_process_group()

    def _stop(self, *_: object) -> None:
        self._asked_to_stop = True

    def _agree(self) -> tuple[bool, float]:
        """Whether it is over, and the scale of the learning rate: the first rank's clock counts."""
        plan, progress = self._plan, self._progress
        over = self._asked_to_stop or progress.minutes >= plan.minutes
        over = over or (plan.steps is not None and progress.step >= plan.steps)
        word = torch.tensor([float(over), rate_scale(progress.step, progress.minutes, plan)], dtype=torch.float64)
        if plan.ranks > 1:
            distributed.broadcast(word, 0)
        return bool(word[0]), float(word[1])

    def _step(self, tally: Tally, scale: float) -> None:
        progress = self._progress
        started = time.monotonic()
        batch = self._examples.batch(progress.step, self._rank)
        tally.data_time += time.monotonic() - started
        tokens, sound, word, said = self._losses(self._nano, *_tensors(batch, self._nano))
        (tokens + AUXILIARY * scale * (sound + word)).backward()
        self._share()
        torch.nn.utils.clip_grad_norm_(self._nano.parameters(), 1.0)
        self._optimiser.step(scale)
        self._nano.zero_grad(set_to_none=True)
        progress.step += 1
        progress.audio_seconds += batch.seconds * self._plan.ranks
        tally.add(batch, (tokens.detach(), sound.detach(), word.detach(), said))

    def _share(self) -> None:
        """The mean of all ranks' gradients."""
        if self._plan.ranks == 1:
            return
        gradients = [tensor.grad for tensor in self._nano.parameters() if tensor.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(together)
        together /= self._plan.ranks
        for gradient, part in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def _keep(self, name: str) -> None:
        if self._rank == 0:
            save(self._plan.out / name, self._nano, self._optimiser, self._progress, self._plan)

    def _log(self, line: dict[str, Any]) -> None:
        progress = self._progress
        head = {
            "step": progress.step,
            "minutes": round(progress.minutes, 3),
            "wall_minutes": round(progress.wall_minutes, 3),
            "audio_seconds": round(progress.audio_seconds),
        }
        text = json.dumps(head | line)
        with (self._plan.out / "log.jsonl").open("a") as log:
            log.write(text + "\n")
        print(text, flush=True)

    def _evaluate(self) -> None:
        from training.evaluate import quick

        assert self._plan.development is not None
        self._log({"evaluation": quick(self._nano, self._plan.development)})


def _examples(plan: Plan) -> Examples:
    clips = Clips(plan.corpus)
    return Examples(
        Pool(clips.kinds, clips.voices, clips),
        Augment(plan.seed, plan.device) if plan.augmented else None,
        seed=plan.seed,
        tokens=plan.tokens,
        size=plan.size,
        delays=plan.delays,
        device=plan.device,
    )


def options(arguments: list[str] | None = None) -> Plan:
    """From the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, required=True)
    add("--out", type=Path, required=True, help="folder of the state and the log; a state there is gone on with")
    add("--development", type=Path, help="corpus on which the word error rate is followed")
    add("--minutes", type=float, default=150.0, help="of training, those of earlier runs included")
    add("--decay-minutes", type=float, default=30.0, help="the last of them, in which the learning rate falls")
    add("--steps", type=int, help="stop when so many are done, those of earlier runs included")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--ranks", type=int, help="processes; one per core on a CPU")
    add("--threads", type=int, default=1, help="of each process on a CPU")
    add("--size", type=int, help="examples per step and process")
    add("--delays", type=int, default=2, help="at which each example is learned, per step")
    add("--tokens", type=int, default=120, help="of audio in an example, 80 ms each")
    add("--evaluate-minutes", type=float, default=10.0)
    add("--augment", action=argparse.BooleanOptionalAction, default=True)
    add("--compile", action=argparse.BooleanOptionalAction, default=True)
    for name in Shape.__slots__:
        add(f"--{name.replace('_', '-')}", type=int, default=getattr(Shape(), name))
    given = parser.parse_args(arguments)
    on_cpu = given.device == "cpu"
    return Plan(
        corpus=given.corpus,
        out=given.out,
        development=given.development,
        minutes=given.minutes,
        decay_minutes=given.decay_minutes,
        steps=given.steps,
        seed=given.seed,
        device=given.device,
        ranks=given.ranks or (len(os.sched_getaffinity(0)) if on_cpu else 1),
        threads=given.threads,
        size=given.size or (8 if on_cpu else 256),
        delays=given.delays,
        tokens=given.tokens,
        compiled=given.compile,
        evaluate_minutes=given.evaluate_minutes,
        augmented=given.augment,
        shape=replace(Shape(), **{name: getattr(given, name) for name in Shape.__slots__}),
    )


if __name__ == "__main__":
    train(options())
