"""A real HTTP server that speaks as OpenAI-compatible ones do, for chat engines to ask."""

from __future__ import annotations

import io
import json
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "mini", "object": "model"}, {"id": "other", "object": "model"}]}
TEXT = {"text": " hello there", "usage": {"type": "duration", "seconds": 1}}
COMPLETION: dict[str, Any] = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "A greeting."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 390, "completion_tokens": 4, "total_tokens": 394},
}


_PATIENCE_SECONDS = 30.0


@dataclass
class Backend:
    """What the server answers by path, status and body, or a function of what it was sent, and what that was."""

    answers: dict[str, tuple[int, bytes | Callable[[bytes], bytes]]] = field(
        default_factory=lambda: {
            "/v1/models": (200, json.dumps(MODELS).encode()),
            "/v1/audio/transcriptions": (200, json.dumps(TEXT).encode()),
            "/v1/chat/completions": (200, json.dumps(COMPLETION).encode()),
        }
    )
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    silent: bool = False  # about everything but its models: waits until the client goes away
    hold: threading.Event = field(
        default_factory=threading.Event
    )  # no answer comes before it is set, as it is at first
    asked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    left: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    url: str = ""

    def __post_init__(self) -> None:
        self.hold.set()

    def says(self, path: str, status: int, body: Any) -> None:
        plain = isinstance(body, bytes) or callable(body)
        self.answers[path] = (status, body if plain else json.dumps(body).encode())


@contextmanager
def chat_backend() -> Iterator[Backend]:
    """One that is running."""
    backend = Backend()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            backend.requests.append((self.path, dict(self.headers), body))
            backend.asked.release()
            if backend.silent and self.path != "/v1/models":
                assert self.connection.recv(1) == b""
                backend.left.release()
                self.close_connection = True
                return
            backend.hold.wait(_PATIENCE_SECONDS)
            status, answer = backend.answers[self.path]
            content = answer(body) if callable(answer) else answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing to the test's output."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        backend.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield backend
        server.shutdown()
        thread.join()


def samples(file: bytes) -> bytes:
    """The PCM of a WAV file."""
    with wave.open(io.BytesIO(file)) as reader:
        return bytes(reader.readframes(reader.getnframes()))
