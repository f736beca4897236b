"""API keys: what a file may hold, how they are compared, what needs one, who may reach us."""

from __future__ import annotations

import asyncio
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from puna.serve import keys as keys_module
from puna.serve.exposure import LocalOnly, check_exposure, is_loopback
from puna.serve.facts import KEY as FACTS
from puna.serve.keys import Keys, RequireKey, environment_keys, parse_keys, read_keys
from tests.serve.apps import KEY, make_app, request

OTHER_KEY = "sk-fedcba9876543210"
KEYS = Keys([("alice", KEY), ("bob", OTHER_KEY)])


def test_files_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\nalice:{KEY}\n  bob {OTHER_KEY}  \n")
    path.chmod(0o600)
    warnings: list[str] = []
    keys = read_keys(path, warnings.append)
    assert keys.names == ("alice", "bob")
    assert keys.name_of(KEY.encode()) == "alice"
    assert keys.name_of(OTHER_KEY.encode()) == "bob"
    assert keys.name_of(b"") is None
    assert keys.name_of(KEY.encode() + b"0") is None
    assert warnings == []
    path.chmod(0o644)
    read_keys(path, warnings.append)
    assert warnings == [f"{path} holds API keys and every user can read it: chmod 600 {path}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f":{KEY}", "line 1: an API key's name has 1 to 64"),
        (KEY, "line 1: an API key needs a name"),
        (f"# ours\nalice:{KEY}\nalice:{OTHER_KEY}", "line 3: two API keys are named 'alice'"),
        (f"alice:{KEY}\nbob:{KEY}", "line 2: the API key named 'bob' is another's too"),
        ("alice:short", "line 1: the API key named 'alice' has 5 characters, not 16 to 512"),
        (f"alice:{'k' * 513}", "line 1: the API key named 'alice' has 513 characters"),
        (f"alice:{KEY}\u00e9", "line 1: the API key named 'alice' has other than visible ASCII"),
        (f"alice:{KEY} more", "line 1: the API key named 'alice' has other than visible ASCII"),
        ("# nothing\n", "has no API key"),
    ],
)
def test_what_a_file_of_keys_may_not_hold(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_keys(path, lambda warning: None)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read API keys from .*: No such file"):
        read_keys(tmp_path / "missing", lambda warning: None)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        read_keys(tmp_path / "binary", lambda warning: None)


def test_keys_from_the_environment() -> None:
    assert environment_keys(None, None) is None
    assert environment_keys("", "") is None
    one = environment_keys(KEY, None)
    assert one is not None
    assert one.names == ("default",)
    several = environment_keys(None, f"alice:{KEY},bob:{OTHER_KEY}")
    assert several is not None
    assert several.names == ("alice", "bob")
    with pytest.raises(ValueError, match="both set"):
        environment_keys(KEY, f"alice:{OTHER_KEY}")
    with pytest.raises(ValueError, match=r"PUNA_API_KEY: .*has 5 characters"):
        environment_keys("short", None)
    with pytest.raises(ValueError, match="PUNA_API_KEYS, line 2"):
        environment_keys(None, f"alice:{KEY},bob")


def test_nothing_shows_a_key() -> None:
    assert repr(KEYS) == "Keys(alice, bob)"
    assert KEYS.redact(f"a {KEY} b {OTHER_KEY}") == "a [API key] b [API key]"


@pytest.mark.parametrize("presented", [KEY, OTHER_KEY, "neither"])
def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch, presented: str) -> None:
    compared: list[int] = []

    class Counting:
        @staticmethod
        def compare_digest(a: bytes, b: bytes) -> bool:
            compared.append(len(a) + len(b))
            return hmac.compare_digest(a, b)

    monkeypatch.setattr(keys_module, "hmac", Counting)
    KEYS.name_of(presented.encode())
    assert compared == [64, 64]


def ask(app: Any, path: str, authorization: str | None, **options: Any) -> Any:
    headers = {} if authorization is None else {"Authorization": authorization}
    return asyncio.run(request(app, path, headers=headers, **options))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_known_key_is_let_in_and_named(scheme: str) -> None:
    state: dict[str, Any] = {}
    app = RequireKey(make_app(), KEYS)
    assert ask(app, "/echo", f"{scheme}  {OTHER_KEY} ", state=state)[0] == 200
    assert state[FACTS].key_name == "bob"


@pytest.mark.parametrize("path", ["/echo", "/metrics", "/v1/models", "/web", "/healthy", "//"])
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}",
     f"Bearer {KEY} {KEY}", "Bearer \u00ff\u00fe"],
)  # fmt: skip
def test_others_are_not(path: str, authorization: str | None) -> None:
    status, headers, body = ask(RequireKey(make_app(), KEYS), path, authorization)
    assert status == 401
    assert headers["www-authenticate"] == "Bearer"
    error = json.loads(body)["error"]
    assert error.pop("message").endswith("send the header `Authorization: Bearer KEY`.")
    assert error == {"type": "invalid_request_error", "param": None, "code": "invalid_api_key"}
    assert KEY not in body.decode()


def test_two_authorizations_are_none() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["headers"] = scope["headers"] * 2
        await RequireKey(make_app(), KEYS)(scope, receive, send)

    assert ask(app, "/echo", f"Bearer {KEY}")[0] == 401


def test_public_pages_need_no_key() -> None:
    app = RequireKey(make_app(), KEYS)
    for path in ("/", "/web/chat.js", "/health", "/ready", "/docs", "/openapi.json"):
        assert ask(app, path, None)[0] != 401
    for path in ("/docs/", "/web", "/echo", "/metrics"):
        assert ask(app, path, None)[0] == 401


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("LOCALHOST", True), ("0.0.0.0", False), ("::", False), ("", False), ("10.0.0.1", False),
     ("localhost.evil.example", False), ("127.0.0.1.evil.example", False), ("2130706433", False)],
)  # fmt: skip
def test_keys_are_needed_off_the_loopback(host: str, inside: bool) -> None:
    assert is_loopback(host) == inside
    check_exposure(host, KEYS)
    if inside:
        check_exposure(host, None)
    else:
        with pytest.raises(ValueError, match=r"lets other machines in.*set PUNA_API_KEY"):
            check_exposure(host, None)


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("localhost:8000", None, 200),
        ("127.0.0.1:8000", None, 200),
        ("[::1]:8000", None, 200),
        ("puna.local", None, 200),
        ("localhost:8000", "http://localhost:8000", 200),
        ("LOCALHOST:8000", "http://localhost:8000", 200),
        ("localhost:8000", "https://friend.example", 200),
        ("evil.example", None, 403),
        ("evil.example:8000", "http://evil.example:8000", 403),
        ("localhost.evil.example", None, 403),
        ("", None, 403),
        ("[::1", None, 403),
        ("user@evil.example", None, 403),
        ("localhost:8000", "https://evil.example", 403),
        ("localhost:8000", "http://localhost:9000", 403),
        ("localhost:8000", "null", 403),
        ("localhost:8000", "", 403),
        ("localhost:8000", "http://[", 403),
    ],
)
def test_pages_of_others_are_refused(host: str, origin: str | None, status: int) -> None:
    app = LocalOnly(make_app(), hosts=["Puna.local"], origins=["https://friend.example"])
    headers = {"Host": host} | ({} if origin is None else {"Origin": origin})
    assert asyncio.run(request(app, headers=headers))[0] == status


def test_a_request_without_a_host_is_refused_and_all_origins_can_be_allowed() -> None:
    assert asyncio.run(request(LocalOnly(make_app())))[0] == 403
    headers = {"Host": "localhost", "Origin": "https://any.example"}
    assert asyncio.run(request(LocalOnly(make_app(), origins=["*"]), headers=headers))[0] == 200


def test_lines_are_those_of_the_text() -> None:
    assert parse_keys(f"alice : {KEY}\r\nbob\t{OTHER_KEY}", "here").names == ("alice", "bob")
