"""The files of the web chat over HTTP: their headers, and that nothing else is there."""

from __future__ import annotations

import re

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from puna.serve.pages import CHAT, COMPARE, MEDIA_TYPES, WEB, page_routes

FILES = sorted(
    path.relative_to(WEB).as_posix()
    for path in WEB.rglob("*")
    if path.suffix in MEDIA_TYPES and path.suffix != ".html"
)


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Starlette(routes=page_routes()))


@pytest.mark.parametrize("path", ["/", *(f"/web/{name}" for name in FILES)])
def test_each_file_has_the_headers_that_keep_the_page_safe(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "http" not in policy
    for wall in ("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"):
        assert wall in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert client.head(path).status_code == 200


def test_a_file_that_is_known_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/")
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        again = client.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/web/app.js").headers["etag"] != etag


@pytest.mark.parametrize(
    "path",
    [
        "../pages.py",
        "..%2fpages.py",
        "%2e%2e/pages.py",
        "vendor/../../pages.py",
        "..\\pages.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "app.js%00",
        "vendor/README.md",
        "vendor/",
        "index.html",
        "compare.html",
        "",
    ],
)
def test_nothing_else_is_there(client: TestClient, path: str) -> None:
    assert client.get(f"/web/{path}").status_code == 404


@pytest.mark.parametrize("name", [CHAT["/"], COMPARE["/"]])
def test_a_page_names_files_that_exist_and_nothing_inline(name: str) -> None:
    page = (WEB / name).read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert named and {name.removeprefix("web/") for name in named} <= set(FILES)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! [^>]*src=)", page)


def test_our_modules_import_each_other_and_name_no_other_host() -> None:
    ours = [name for name in FILES if not name.startswith("vendor/") and name.endswith(".js")]
    assert "markdown.js" in ours
    for name in ours:
        text = (WEB / name).read_text(encoding="utf-8")
        imported = re.findall(r'(?:from|import) "\./([^"]+)"', text)
        assert set(imported) <= set(FILES), name
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert "innerHTML" not in text, f"{name} parses HTML; markdown.js has the one way to do so"
