"""A real process and real signals: who is let finish, who is cut, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.serve.listening import bind, bind_unix, check_tls, closed_after, url_of
from puna.serve.running import RunOptions
from tests.serve.apps import KEY, make_app, serving

ROOT = Path(__file__).parents[2]


@contextmanager
def process(**options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server of `apps.main`; yields it and its URL."""
    running = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.serve.apps", json.dumps(options)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stdout is not None
        url = running.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), running.communicate()
        yield running, url
    finally:
        running.kill()
        running.communicate()


def finish(running: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was written to stderr."""
    _, errors = running.communicate(timeout=60)
    return running.returncode, errors


def test_the_real_port_is_printed() -> None:
    with process() as (running, url):
        assert not url.endswith(":0")
        assert httpx.post(f"{url}/echo", content=b"four").text == "4"
        assert httpx.get(f"{url}/ready").status_code == 200
        running.send_signal(signal.SIGTERM)
        code, errors = finish(running)
        assert code == 0
        assert "Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_lets_requests_finish(number: signal.Signals) -> None:
    with process(steps=20) as (running, url):
        with httpx.stream("POST", f"{url}/stream") as response:
            events = response.iter_lines()
            assert next(events) == "data: 0"
            running.send_signal(number)
            rest = [line for line in events if line]
        assert rest[-2:] == ["data: 19", "data: [DONE]"]
        code, errors = finish(running)
        assert code == 0
        assert "Traceback" not in errors
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/ready")


def test_a_drain_that_takes_too_long_ends_streams_with_an_error() -> None:
    with process(steps=10_000, drain_timeout=0.3) as (running, url):
        with httpx.stream("POST", f"{url}/stream") as response:
            events = response.iter_lines()
            next(events)
            running.send_signal(signal.SIGTERM)
            rest = [line for line in events if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["code"] == "server_stopping"
        assert rest[-2].startswith("data: ")
        code, errors = finish(running)
        assert code == 0
        assert "Traceback" not in errors
        (line,) = [json.loads(line) for line in errors.splitlines()]
        assert (line["status"], line["error"]) == (200, "server_stopping")


def test_an_answer_that_had_not_begun_is_an_error() -> None:
    with process(steps=10_000, drain_timeout=0.3) as (running, url):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as raw:
            raw.sendall(
                b"POST /slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
                b"Expect: 100-continue\r\n\r\n"
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 100")  # the request is under way
            raw.sendall(b"four")
            running.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: raw.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_stopping"
        assert finish(running)[0] == 0


def test_a_second_signal_stops_at_once() -> None:
    with process(steps=10_000, drain_timeout=300) as (running, url):
        with httpx.stream("POST", f"{url}/stream") as response:
            events = response.iter_lines()
            next(events)
            running.send_signal(signal.SIGTERM)
            for _ in range(10):  # half a second of events: the first signal cut nothing
                assert next(line for line in events if line)[6:].isdigit()
            running.send_signal(signal.SIGTERM)
            rest = [line for line in events if line]
        assert "server_stopping" in rest[-1]
        code, errors = finish(running)
        assert code == 128 + signal.SIGTERM
        assert "Traceback" not in errors


def test_a_stopping_server_says_that_it_is_not_ready() -> None:
    with process(drain_delay=60) as (running, url), httpx.Client() as client:
        assert client.get(f"{url}/ready").status_code == 200
        running.send_signal(signal.SIGTERM)
        statuses = (client.get(f"{url}/ready").status_code for _ in range(100_000))
        assert next(status for status in statuses if status != 200) == 503
        assert httpx.post(f"{url}/echo", content=b"four").text == "4"  # still accepted
        running.send_signal(signal.SIGTERM)
        assert finish(running)[0] == 128 + signal.SIGTERM


def test_idle_connections_do_not_hold_up_the_end() -> None:
    with process(drain_timeout=300) as (running, url), httpx.Client() as client:
        client.get(f"{url}/ready")
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(b"GET / HTTP/1.1\r\nHos")
            running.send_signal(signal.SIGTERM)
            assert finish(running)[0] == 0


def test_no_key_is_ever_logged() -> None:
    with process(keys=True, log_prompts=True) as (running, url):
        header = {"Authorization": f"Bearer {KEY}"}
        wrong = "sk-fedcba9876543210"
        body = b'{"api_key": "' + KEY.encode() + b'", "prompt": "Hello"}'
        assert httpx.post(f"{url}/echo?key={KEY}", headers=header, content=body).status_code == 200
        assert httpx.post(f"{url}/echo?key={KEY}", content=body).status_code == 401
        assert httpx.post(f"{url}/{KEY}", headers=header).status_code == 404
        header = {"Authorization": f"Bearer {wrong}"}
        assert httpx.post(f"{url}/echo?k={wrong}", headers=header).status_code == 401
        assert httpx.post(f"{url}/fail", headers={"Authorization": f"Bearer {KEY}"}).is_error
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"GET /%s not HTTP\r\n\r\n" % KEY.encode())
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        running.send_signal(signal.SIGTERM)
        _, errors = finish(running)
        assert "the app broke" in errors  # what broke is said
        assert KEY not in errors
        assert wrong not in errors
        assert "Hello" in errors
        assert errors.count('"key": "alice"') == 3


def test_a_port_in_use_is_one_clear_line() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} of 127.0.0.1 is in use: give another"):
            bind("127.0.0.1", port)


def test_addresses_that_are_none() -> None:
    with pytest.raises(ValueError, match="is no address of this machine"):
        bind("192.0.2.1", 0)
    with pytest.raises(ValueError, match="there is no such address"):
        bind("127.0.0.1.2", 0)


def test_the_url_of_a_socket() -> None:
    with bind("localhost", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert url_of(listener, tls=True) == f"https://127.0.0.1:{port}"


def test_a_unix_socket_is_its_owners_and_replaces_a_dead_one() -> None:
    with tempfile.TemporaryDirectory() as folder:  # short: such a path has at most 107 bytes
        path = Path(folder) / "s"
        with bind_unix(path) as listener:
            assert path.stat().st_mode & 0o777 == 0o600
            assert url_of(listener) == f"unix:{path}"
            with pytest.raises(ValueError, match="is in use"):
                bind_unix(path)
        with serving(make_app(), RunOptions(), listener=bind_unix(path)):
            transport = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(transport=transport) as client:
                assert client.post("http://localhost/echo", content=b"four").text == "4"
        with closed_after(bind_unix(path)):
            assert path.exists()
        assert not path.exists()
        path.write_text("not a socket")
        with pytest.raises(ValueError, match="is no socket"):
            bind_unix(path)
        with pytest.raises(ValueError, match="cannot be opened"):
            bind_unix(Path(folder) / "missing" / "s")
        assert os.umask(0o022) == 0o022


def test_tls_files_come_in_pairs_that_can_be_read(tmp_path: Path) -> None:
    check_tls(None, None)
    with pytest.raises(ValueError, match="go together"):
        check_tls(tmp_path / "cert.pem", None)
    with pytest.raises(ValueError, match=r"--tls-cert .*cert.pem: No such file"):
        check_tls(tmp_path / "cert.pem", tmp_path / "key.pem")
    (tmp_path / "cert.pem").write_text("nothing")
    (tmp_path / "key.pem").write_text("nothing")
    with pytest.raises(ValueError, match=r"cert\.pem and .* are no PEM"):
        check_tls(tmp_path / "cert.pem", tmp_path / "key.pem")


def test_tls(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    trust = ssl.create_default_context(cafile=str(cert))
    with (
        serving(make_app(), RunOptions(tls_cert=cert, tls_key=key)) as port,
        httpx.Client(verify=trust) as client,
    ):
        assert client.post(f"https://127.0.0.1:{port}/echo", content=b"four").text == "4"
