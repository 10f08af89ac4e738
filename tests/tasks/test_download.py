"""Downloads, against a server of our own: resumed, checked, cached, and never half there under their final name."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rnnzoo import UserError
from rnnzoo.files import cache_folder
from rnnzoo.tasks.download import digest, download

CONTENT = bytes(range(256)) * 2000
LARGEST = len(CONTENT) + 1000
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`; what it is to do wrong is set by a test, what it was asked is noted."""

    daemon_threads = True
    content = CONTENT
    ranges = True  # whether it can go on in the middle
    sized = True  # whether it says how much will come
    cut_after: int | None = None  # bytes after which the connection ends, once
    status = 200
    pause = 0.0  # seconds after each byte
    pause_in_headers = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.requests.append(asked)
        if server.status == 302:
            self.send_response(302)
            self.send_header("Location", "/data.bin")
            self.end_headers()
            return
        if server.status == 0:
            self.wfile.write(b"\0\1 no HTTP\r\n\r\n")
            return
        if server.status != 200:
            self.send_error(server.status)
            return
        body = server.content
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
        if start and start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if asked and server.ranges else 200)
        if asked and server.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        body = body[start:]
        if server.sized:
            self.send_header("Content-Length", str(len(body)))
        if server.pause_in_headers:
            self.flush_headers()
            self.drip(b"X-Long: " + b"a" * 500, server.pause_in_headers)
            return
        self.end_headers()
        if server.pause:
            self.drip(body, server.pause)
            return
        if server.cut_after is not None:
            body, server.cut_after = body[: server.cut_after], None
        with contextlib.suppress(OSError):  # who asked has heard enough
            self.wfile.write(body)

    def drip(self, content: bytes, pause: float) -> None:
        with contextlib.suppress(OSError):
            for byte in content:
                self.wfile.write(bytes([byte]))
                time.sleep(pause)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests look at `requests`."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: Server, checksum: str = SHA) -> Path:
    return download(server.url, "data.bin", checksum, "task.data=PATH", LARGEST)


def refused(server: Server, checksum: str = SHA) -> str:
    """The message of a download that fails; nothing may then be there under the final name."""
    with pytest.raises(UserError) as error:
        get(server, checksum)
    assert not (cache_folder() / "data.bin").exists()
    assert "\n" not in str(error.value)
    assert server.url in str(error.value)
    message = str(error.value)
    del error
    gc.collect()  # a connection left open warns when it is collected: here, not in some later test
    return message


def test_a_file_is_fetched_once(server: Server, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = get(server)
    assert path == own_cache / "data.bin" and path.read_bytes() == CONTENT
    assert f"downloading {server.url} to {path}" in capsys.readouterr().out
    assert get(server) == path
    assert capsys.readouterr().out == ""
    assert server.requests == [None]
    assert list(own_cache.glob("[!.]*")) == [path]


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_checksums_of_both_kinds(algorithm: str, server: Server) -> None:
    checksum = hashlib.new(algorithm, CONTENT).hexdigest()
    assert digest(get(server, f"{algorithm}:{checksum}"), algorithm) == checksum


def test_a_cut_connection_is_resumed(server: Server, own_cache: Path) -> None:
    server.cut_after = 100_000
    message = refused(server)
    assert "task.data=PATH" in message and "try again" in message
    kept = (own_cache / "data.bin.partial").read_bytes()
    assert kept == CONTENT[: len(kept)] and len(kept) == 100_000
    assert get(server).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-"]
    assert list(own_cache.glob("[!.]*")) == [own_cache / "data.bin"]


def test_it_is_resumed_as_often_as_need_be(server: Server) -> None:
    for _ in range(2):
        server.cut_after = 200_000
        refused(server)
    assert get(server).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=200000-", "bytes=400000-"]


def test_a_server_that_cannot_go_on_begins_anew(server: Server) -> None:
    server.ranges = False
    server.cut_after = 100_000
    refused(server)
    assert get(server).read_bytes() == CONTENT


def test_a_server_that_does_not_say_how_much_there_is(server: Server, own_cache: Path) -> None:
    """A cut cannot be told from the end then, but by the checksum."""
    server.sized = False
    server.cut_after = 100_000
    assert "sha256" in refused(server)
    assert get(server).read_bytes() == CONTENT


def test_a_file_that_was_complete_but_not_yet_in_place(server: Server, own_cache: Path) -> None:
    (own_cache / "data.bin.partial").write_bytes(CONTENT)
    assert get(server).read_bytes() == CONTENT
    assert server.requests == [f"bytes={len(CONTENT)}-"]


@pytest.mark.parametrize("left", [b"something else altogether", CONTENT + b"more"], ids=["another", "longer"])
def test_what_was_left_there_by_another_file_is_dropped(left: bytes, server: Server, own_cache: Path) -> None:
    (own_cache / "data.bin.partial").write_bytes(left)
    assert "sha256" in refused(server)
    assert not (own_cache / "data.bin.partial").exists()
    assert get(server).read_bytes() == CONTENT


def test_a_wrong_checksum_drops_the_file_and_says_so(server: Server, own_cache: Path) -> None:
    server.content = b"another file"
    message = refused(server)
    assert hashlib.sha256(b"another file").hexdigest() in message and SHA.partition(":")[2] in message
    assert "dropped" in message
    assert list(own_cache.glob("[!.]*")) == []
    server.content = CONTENT
    assert get(server).read_bytes() == CONTENT


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("cut_after", [None, 100_000])
def test_a_server_that_sends_too_much_is_cut_short(
    sized: bool, cut_after: int | None, server: Server, own_cache: Path
) -> None:
    """Whether it says so before or not, and at the second attempt, too; nothing of it is kept."""
    server.sized, server.cut_after = sized, cut_after
    server.content = bytes(LARGEST + 1) if cut_after else bytes(100 * LARGEST)
    if cut_after and not sized:
        refused(server)
        server.cut_after = None
    assert f"sends more than {LARGEST:,} bytes" in refused(server)
    assert all(path.stat().st_size == 0 for path in own_cache.glob("[!.]*"))
    server.content, server.sized, server.cut_after = CONTENT, True, None
    assert get(server).read_bytes() == CONTENT


def test_a_server_that_drips_is_given_up(server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time; what has come is kept."""
    monkeypatch.setattr("rnnzoo.tasks.download.TIMEOUT_SECONDS", 0.2)
    server.pause = 0.01
    message = refused(server)
    assert "bytes in 0 seconds" in message and "try again to go on" in message and "task.data=PATH" in message
    kept = (own_cache / "data.bin.partial").read_bytes()
    assert 0 < len(kept) < 200 and CONTENT.startswith(kept)
    server.pause, server.pause_in_headers = 0.0, 0.01
    assert "no answer in 0.4 seconds" in refused(server)
    server.pause_in_headers = 0.0
    assert get(server).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 500, 302, 0])
def test_an_error_of_the_server(status: int, server: Server, own_cache: Path) -> None:
    server.status = status
    message = refused(server)
    assert "task.data=PATH" in message
    said = {404: "Not Found", 500: "Internal Server Error", 302: "infinite loop. The last 30x", 0: "no HTTP"}
    assert said[status] in message
    server.status = 200
    assert get(server).read_bytes() == CONTENT


def test_an_error_later_keeps_what_is_there(server: Server, own_cache: Path) -> None:
    server.cut_after = 100_000
    refused(server)
    server.status = 503
    refused(server)
    server.status = 200
    assert get(server).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=100000-"


def test_no_network(own_cache: Path) -> None:
    with socket.socket() as taken:  # a port on which nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
        with pytest.raises(UserError) as error:
            download(url, "data.bin", SHA, "task.text=FILE", LARGEST)
    message = str(error.value)
    assert message.startswith(f"cannot download {url}: ") and "task.text=FILE" in message and "\n" not in message
    assert "refused" in message.lower()
    assert not (own_cache / "data.bin").exists()


def test_a_cached_file_needs_no_network(own_cache: Path) -> None:
    (own_cache / "data.bin").write_bytes(CONTENT)
    assert download("http://nowhere.invalid/data.bin", "data.bin", SHA, "", LARGEST).read_bytes() == CONTENT


def test_a_damaged_file_in_the_cache_is_fetched_again(
    server: Server, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays where it is until there is another."""
    damaged = CONTENT[:-1] + b"0"
    (own_cache / "data.bin").write_bytes(damaged)
    server.status = 404
    with pytest.raises(UserError, match="Not Found"):
        get(server)
    assert (own_cache / "data.bin").read_bytes() == damaged
    server.status = 200
    assert get(server).read_bytes() == CONTENT
    assert f"{own_cache / 'data.bin'}: is not what was once downloaded there" in capsys.readouterr().out
    assert get(server).read_bytes() == CONTENT and len(server.requests) == 2


def test_the_final_name_appears_at_the_end(server: Server, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a block is written, and when the checksum is made, the final name is not yet there."""
    seen = []

    def looking(path: Path, algorithm: str) -> str:
        seen.append(sorted(p.name for p in own_cache.glob("[!.]*")))
        return digest(path, algorithm)

    monkeypatch.setattr("rnnzoo.tasks.download.digest", looking)
    get(server)
    assert seen == [["data.bin.partial"]]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RNNZOO_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RNNZOO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "rnnzoo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rnnzoo"
    monkeypatch.setenv("RNNZOO_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("cache", ["file", "file/cache", "locked"])
def test_a_cache_that_cannot_be_written(
    cache: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a regular file")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)  # where no lock can be made, as in a folder of others
    monkeypatch.setenv("RNNZOO_CACHE", str(tmp_path / cache))
    with pytest.raises(UserError, match=f"^cannot write to {tmp_path / cache}: .*; set RNNZOO_CACHE to a folder that"):
        get(server)


def test_a_user_without_a_home_is_told_to_name_a_cache(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("RNNZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", none)
    with pytest.raises(UserError, match="no home folder to keep a cache in; set RNNZOO_CACHE to a folder"):
        get(server)
