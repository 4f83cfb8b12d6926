"""Where live audio comes from: a microphone, or a file that is played as one. 16 kHz PCM16 mono, as it is heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter_ns
from types import ModuleType
from typing import Any, Protocol

from harness.audio import Resampler, decode
from harness.pacing import NS, due_offsets_ns, packet_ends
from wire.pcm import SAMPLE_RATE

BLOCK_MS = 20


class SourceError(Exception):
    """There is no audio to be had from there; the message says what to do."""


class Source(Protocol):
    """Something that is listened to."""

    lost: int
    """Blocks that were not taken in time, and are missing."""

    def blocks(self) -> AsyncIterator[bytes]:
        """The audio as it comes, until it ends by itself or by ``stop``.

        Raises:
            SourceError: there is none, or no more.
        """

    def stop(self) -> None:
        """Let the audio end here. Called in the event loop."""


class Played:
    """A file at the pace at which it was spoken."""

    def __init__(self, path: Path) -> None:
        """Raises AudioError when it cannot be decoded."""
        self.lost = 0
        self._pcm = decode(path)
        self._stopped = asyncio.Event()

    async def blocks(self) -> AsyncIterator[bytes]:
        ends = packet_ends(len(self._pcm), BLOCK_MS)
        t0_ns, before = perf_counter_ns(), 0
        for end, offset_ns in zip(ends, due_offsets_ns(ends, 1.0), strict=True):
            await self._until(t0_ns + offset_ns)
            if self._stopped.is_set():
                return
            yield self._pcm[before:end]
            before = end

    async def _until(self, due_ns: int) -> None:
        try:
            async with asyncio.timeout(max(0.0, (due_ns - perf_counter_ns()) / NS)):
                await self._stopped.wait()
        except TimeoutError:
            pass

    def stop(self) -> None:
        self._stopped.set()


class Microphone:
    """An input device by way of PortAudio. At 16 kHz where the device can, else at its own rate and resampled."""

    def __init__(self, device: str | None = None, library: ModuleType | Any = None) -> None:
        """``device`` is a number or a part of a name, ``library`` the sounddevice module.

        Raises:
            SourceError: no such library, or no such device.
        """
        self.lost = 0
        self._library = library or sound_library()
        self._device: int | str | None = int(device) if device is not None and device.isdecimal() else device
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        try:
            found = self._library.query_devices(self._device, "input")
            self.name: str = found["name"]
            self._rate = self._rate_of(found)
        except (ValueError, self._library.PortAudioError) as error:
            named = "there is no microphone" if device is None else f"--device {device}: no such microphone"
            raise SourceError(f"{named} ({error}); --list-devices shows what there is, --wav plays a file") from None

    def _rate_of(self, found: Any) -> int:
        try:
            self._library.check_input_settings(self._device, channels=1, dtype="int16", samplerate=SAMPLE_RATE)
        except (ValueError, self._library.PortAudioError):
            return int(found["default_samplerate"])
        return SAMPLE_RATE

    async def blocks(self) -> AsyncIterator[bytes]:
        resampler = Resampler(self._rate, SAMPLE_RATE)
        try:
            stream = self._library.RawInputStream(
                samplerate=self._rate,
                blocksize=self._rate * BLOCK_MS // 1000,
                device=self._device,
                channels=1,
                dtype="int16",
                callback=self._take,
            )
        except (ValueError, self._library.PortAudioError) as error:
            raise SourceError(f"{self.name} cannot be opened: {error}") from None
        with stream:
            while (block := await self._queue.get()) is not None:
                yield resampler.feed(block)
        yield resampler.feed(b"", last=True)

    def stop(self) -> None:
        self._queue.put_nowait(None)

    def _take(self, data: Any, _frames: int, _time: Any, status: Any) -> None:
        """Called by PortAudio in a thread of its own."""
        if status:
            self.lost += 1
        self._loop.call_soon_threadsafe(self._queue.put_nowait, bytes(data))


def sound_library() -> Any:
    """The sounddevice module.

    Raises:
        SourceError: it, or the PortAudio library under it, is not installed.
    """
    try:
        import sounddevice
    except ImportError:
        raise SourceError("a microphone needs sounddevice: pip install 'earmark[mic]'") from None
    except OSError as error:
        raise SourceError(
            f"sounddevice found no PortAudio ({error}); install it, on Debian with 'apt install libportaudio2'"
        ) from None
    return sounddevice


def devices(library: ModuleType | Any = None) -> list[str]:
    """The input devices, a line each: number, name, channels and rate; the one that is taken unless another is named has a star.

    Raises:
        SourceError: no such library, or no device.
    """
    library = library or sound_library()
    try:
        chosen = library.query_devices(kind="input")["name"]
    except (ValueError, library.PortAudioError):
        chosen = None
    found = [
        f"{'*' if device['name'] == chosen else ' '} {number:3}  {device['name']}  "
        f"({device['max_input_channels']} channels, {device['default_samplerate']:g} Hz)"
        for number, device in enumerate(library.query_devices())
        if device["max_input_channels"] > 0
    ]
    if not found:
        raise SourceError("there is no microphone here; --wav plays a file instead")
    return found
