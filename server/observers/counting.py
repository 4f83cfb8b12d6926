"""Counts what the operations plane tells of streams, for every surface that does not count so itself."""

from __future__ import annotations

from server.core.events import (
    Audio,
    Cancelled,
    Command,
    Event,
    Failed,
    Final,
    Finish,
    Speech,
    Started,
)
from server.core.rpc_figures import DecodeTiming, RpcFigures

COUNTS_ITSELF = "grpc"
"""The surface whose own protocol says more about its decodes than can be seen from outside."""

STATUS = {"overloaded": "RESOURCE_EXHAUSTED", "invalid_audio": "INVALID_ARGUMENT", "model_not_found": "NOT_FOUND"}
"""gRPC's names for what else goes wrong; anything else is ``INTERNAL``."""


class Counting:
    """An observer of one hearing. A decode is from the end of an utterance's audio to its final text."""

    def __init__(self, figures: RpcFigures) -> None:
        self._figures = figures
        self._first_audio_at: float | None = None
        self._ended_at: float | None = None
        self._speaking = False
        self._pending = False
        figures.session_opened("")

    def command(self, command: Command, now: float) -> None:
        """The end of the audio begins a decode."""
        match command:
            case Audio():
                if self._first_audio_at is None:
                    self._first_audio_at = now
            case Finish():
                self._begin(now)
            case _:
                pass

    def event(self, event: Event, now: float) -> None:
        """Texts, triggers and failures."""
        match event:
            case Started():
                self._speaking = False
            case Speech(_, speaking, _):
                self._set_speaking(speaking)
                if not speaking:
                    self._figures.vad_triggers += 1
                    self._begin(now)
            case Final(audio_seconds=audio_seconds):
                if self._ended_at is not None:
                    waited = self._ended_at - (self._ended_at if self._first_audio_at is None else self._first_audio_at)
                    timing = DecodeTiming(waited, 0.0, now - self._ended_at, audio_seconds)
                    self._figures.decoded(timing, 0.0)
                self._figures.outcome("success", now)
                self._over()
            case Failed(_, code, _):
                self._figures.error(STATUS.get(code, "INTERNAL"))
                if code != "invalid_audio":  # which is the client's own fault
                    self._figures.outcome("failure", now)
                self._over()
            case Cancelled(utterances):
                self._figures.decodes_cancelled += len(utterances) if self._pending else 0
                self._over()
            case _:
                pass

    def closed(self) -> None:
        """The client is gone."""
        self._figures.decodes_cancelled += self._pending
        self._over()
        self._figures.session_closed("")

    def _begin(self, now: float) -> None:
        self._ended_at = now
        self._figures.decodes_pending += not self._pending
        self._pending = True

    def _over(self) -> None:
        self._set_speaking(False)
        self._figures.decodes_pending -= self._pending
        self._pending = False
        self._first_audio_at = self._ended_at = None

    def _set_speaking(self, speaking: bool) -> None:
        self._figures.vad_utterances += speaking - self._speaking
        self._speaking = speaking
