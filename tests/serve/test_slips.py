"""What a stranger's first requests get wrong, and what they are told."""

from __future__ import annotations

from typing import Any

import pytest

from tests.serve.servers import Running

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"  # what curl sends with -d


@pytest.mark.parametrize(
    ("method", "path", "media_type", "body", "status", "said"),
    [
        ("GET", "/v1/modles", JSON, b"", 404, "there is no /v1/modles; /docs says what there is"),
        ("GET", "/v1/completions", JSON, b"", 405, "/v1/completions does not take GET"),
        ("POST", "/v1/completions", FORM, b'{"prompt": "a"}', 400, "`Content-Type: application/j"),
        ("POST", "/v1/completions", JSON, b'{"prompt": "a"', 400, "the body is no JSON"),
        ("POST", "/v1/completions", JSON, b'{"promt": "a"}', 400, "unknown field promt"),
        ("POST", "/v1/completions", JSON, b"{}", 400, "prompt: Field required"),
        ("POST", "/v1/completions", JSON, b"[1]", 400, "the body: "),
        ("POST", "/v1/completions", JSON, b"", 400, "the body: Field required"),
    ],
)
def test_slips(
    server: Running, method: str, path: str, media_type: str, body: bytes, status: int, said: str
) -> None:
    with server.http() as client:
        answer = client.request(method, path, content=body, headers={"Content-Type": media_type})
    error: dict[str, Any] = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert said in error["message"]


def test_a_long_path_is_not_said_back_whole(server: Running) -> None:
    with server.http() as client:
        assert len(client.get("/" + "a" * 5000).json()["error"]["message"]) < 400
