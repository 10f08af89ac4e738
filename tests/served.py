"""The server of `rnnzoo play` for tests: on a port of its own, in a thread of this process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from rnnzoo.play.machine import Machine
from rnnzoo.play.server import app, listen


@contextmanager
def serving(*machines: Machine, **options: Any) -> Iterator[int]:
    """Serves the machines' page on loopback, with options of `app`; yields the port."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app(list(machines), **options), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def ask(port: int, path: str, body: Any = None, method: str = "", **headers: str) -> tuple[int, str]:
    """The code and the text that are answered; a body that is no text is sent as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, sent, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
