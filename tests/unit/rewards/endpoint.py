"""A fake OpenAI-compatible endpoint in a thread."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, int], Any]
"""(prompt, number of the request) -> a reply, or an HTTP status, or bytes to send as they are."""


@dataclass
class Endpoint:
    """What it was asked."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0


def completion(reply: Any) -> bytes:
    """The JSON of a chat completion; 100 tokens asked, 10 replied."""
    message = {"role": "assistant", "content": reply}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    content = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**content, "choices": [choice], "usage": usage}).encode()


@contextmanager
def serve(answer: Answer, seconds: float = 0.0) -> Iterator[Endpoint]:
    """Answer requests until the block ends, each after some seconds."""
    seen = Endpoint()
    lock = threading.Lock()
    at_once = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.bodies.append(body)
                seen.keys.append(self.headers["Authorization"])
                number = len(seen.bodies) - 1
                at_once[0] += 1
                seen.most_at_once = max(seen.most_at_once, at_once[0])
            try:
                time.sleep(seconds)
                self.reply(answer(body["messages"][0]["content"], number))
            except OSError:
                pass  # The client no longer waits.
            finally:
                with lock:
                    at_once[0] -= 1

        def reply(self, value: Any) -> None:
            status, content = 200, value
            if isinstance(value, int):
                # As some endpoints do with a key that they do not know.
                said = f"bad: {self.headers['Authorization']}"
                status, content = value, json.dumps({"error": {"message": said}}).encode()
            elif not isinstance(value, bytes):
                content = completion(value)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    seen.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
