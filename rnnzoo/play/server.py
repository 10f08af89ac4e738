"""The server of the page: for one person, on their own machine unless they say otherwise; it keeps nothing but memory.

Every answer is computed from its request alone. What a page of another site could send is refused: requests must name
this machine as their host, come from a page of it, and be JSON.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rnnzoo.errors import UserError
from rnnzoo.explain.card import stylesheet
from rnnzoo.plain import printable
from rnnzoo.play.machine import Machine
from rnnzoo.play.save import MODULES, PAGE, html

LARGEST = 1 << 20
"""Bytes of a request."""

TYPES = {"js": "text/javascript", "css": "text/css"}


def app(machines: list[Machine], named: tuple[str, ...] = (), outside: bool = False) -> Starlette:
    """The application.

    Args:
        machines: one, or two that stand side by side.
        named: further names of this machine that a request may have as its host.
        outside: whether requests may come to any of the machine's addresses, by number.
    """
    about = {"runs": [machine.about() for machine in machines]}
    one_at_a_time = Lock()  # a model's answer takes all cores anyway, and profiles its own thread

    def answered(what: str, request: dict[str, Any]) -> dict[str, Any]:
        number = request.get("run", 0)
        if type(number) is not int or not 0 <= number < len(machines):
            raise UserError(f"run: must be below {len(machines)}")
        with one_at_a_time:
            found: dict[str, Any] = getattr(machines[number], what)(request)
            return found

    async def page(request: Request) -> Response:
        return Response(html(None, _imports()), media_type="text/html", headers={"Content-Security-Policy": _policy()})

    async def file(request: Request) -> Response:
        name, _, kind = request.path_params["name"].rpartition(".")
        if (name, kind) == ("style", "css"):
            return Response(stylesheet(), media_type=TYPES[kind])
        if kind not in TYPES or name not in (*MODULES, "play"):
            return PlainTextResponse("no such file", 404)
        return Response((PAGE / f"{name}.{kind}").read_bytes(), media_type=TYPES[kind])

    async def tell(request: Request) -> Response:
        return _json(about)

    def asked(what: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                return _refused("requests must be JSON", 415)
            body = await _body(request)
            if body is None:
                return _refused(f"requests must have at most {LARGEST:,} bytes", 413)
            try:
                wanted = json.loads(body)
            except (ValueError, RecursionError):
                return _refused("this is no JSON", 400)
            if not isinstance(wanted, dict):
                return _refused("requests must be objects", 400)
            try:
                return _json(await run_in_threadpool(answered, what, wanted))
            except UserError as error:
                return _refused(printable(error), 400)
            except Exception as error:  # a task's own code may raise anything; the page goes on
                return _refused(printable(f"{type(error).__name__}: {error}").splitlines()[0], 500)

        return answer

    routes = [
        Route("/", page),
        Route("/page/{name}", file),
        Route("/api/about", tell),
        *(Route(f"/api/{what}", asked(what), methods=["POST"]) for what in ("answer", "look", "more")),
    ]
    made = Starlette(routes=routes)
    made.add_middleware(_Local, named=named, outside=outside)
    return made


class _Local:
    """Lets through what is addressed to this machine and, if a page sends it, comes from a page of this server."""

    def __init__(self, app: ASGIApp, named: tuple[str, ...], outside: bool) -> None:
        self.app, self.named, self.outside = app, {"localhost", *named}, outside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = [(key.lower(), value.decode("latin-1")) for key, value in scope["headers"]]
        hosts = [value for key, value in headers if key == b"host"]
        origins = [value for key, value in headers if key == b"origin"]
        if len(hosts) != 1 or not self._is_mine(hosts[0]):
            await _refused("this is not the host that the page is served by", 400)(scope, receive, send)
        elif any(origin != f"http://{hosts[0]}" for origin in origins):
            await _refused("requests must come from the page itself", 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_mine(self, host: str) -> bool:
        name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self.named:
            return True
        try:
            return ipaddress.ip_address(name).is_loopback or self.outside
        except ValueError:  # another's name, which another's DNS may lead here
            return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; on any free port for 0. Raises `UserError` for a host or port that cannot be had."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: must be below {1 << 16}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose others") from None
    # or the kernel would keep an answer's end back for 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def serve(machines: list[Machine], host: str, port: int) -> None:
    """Serve the page until Ctrl-C. Raises `UserError` for a host or port that cannot be had."""
    with listen(host, port) as listening:
        found, port = listening.getsockname()[:2]
        address = ipaddress.ip_address(found)
        outside = not address.is_loopback
        named = (host, socket.gethostname(), socket.getfqdn()) if outside else (host,)
        made = app(machines, tuple(name.lower() for name in named), outside)
        where = f"[{host}]" if ":" in host else host
        print(printable(f"open http://{where}:{port} in a browser; Ctrl-C ends it"), flush=True)
        uvicorn.Server(uvicorn.Config(made, log_level="warning", server_header=False)).run(sockets=[listening])


async def _body(request: Request) -> bytes | None:
    """What was sent, None if it is too much."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            return None
        parts.append(part)
    return b"".join(parts)


def _json(value: dict[str, Any]) -> Response:
    return JSONResponse(value, headers={"Cache-Control": "no-store"})


def _refused(why: str, code: int) -> Response:
    return JSONResponse({"error": why}, code)


def _imports() -> str:
    return json.dumps({"imports": {f"play/{name}": f"/page/{name}.js" for name in MODULES}})


def _policy() -> str:
    """What the page may load and run: its own files, and the list of imports that stands in it."""
    digest = base64.b64encode(hashlib.sha256(_imports().encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; "
        f"connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
