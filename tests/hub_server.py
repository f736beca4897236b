"""A small Hugging Face hub on the loopback: its API, its redirects to a second host, its failures.

Answers are built as the documentation of the hub's API and the headers that `huggingface_hub` reads
say. Large files (LFS) redirect to another port, as the hub does to its content network.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

LFS_SUFFIXES = (".safetensors", ".bin", ".pth", ".gguf", ".model")
PAGE = 4  # files that one answer of the tree lists
TOKEN = "hf_testtoken"


@dataclass
class Repository:
    """Branches of files; `gated` wants TOKEN for their content, `private` for everything."""

    branches: Mapping[str, Mapping[str, bytes]]
    license: str = ""
    gated: bool = False
    private: bool = False

    def files(self, revision: str) -> Mapping[str, bytes] | None:
        for branch, files in self.branches.items():
            if revision in (branch, commit_of(files)):
                return files
        return None


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked: (method, path, headers)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    cut: dict[str, list[int]] = field(default_factory=dict)  # path -> close after so many bytes
    refuse: dict[str, list[int]] = field(default_factory=dict)  # path -> status, once each
    wrong: set[str] = field(default_factory=set)  # paths whose bytes are served damaged
    claimed_sizes: dict[str, int] = field(default_factory=dict)
    ranges: bool = True
    stall: bool = False  # the last block of 64 KiB of a large file does not come
    url: str = ""
    cdn_url: str = ""

    def downloads(self, path: str) -> list[str]:
        """The Range of each GET of a file's content, empty where it was asked from the start."""
        return [
            headers.get("Range", "")
            for method, asked, headers in self.requests
            if method == "GET" and asked.startswith("/cdn/") and asked.endswith(f"/{path}")
        ]


def commit_of(files: Mapping[str, bytes]) -> str:
    text = "".join(f"{path} {digest_of(path, data)}\n" for path, data in sorted(files.items()))
    return hashlib.sha1(text.encode()).hexdigest()


def digest_of(path: str, data: bytes) -> str:
    if path.endswith(LFS_SUFFIXES):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def serve(**repositories: Repository) -> Iterator[Hub]:
    """Runs a hub; names are given with `__` for the slash."""
    hub = Hub({name.replace("__", "/"): value for name, value in repositories.items()})
    servers = []
    for _ in range(2):
        handler = type("Handler", (_Handler,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def use(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """In this process, makes the hub at `url` the library's, and `home` what HF_HOME says."""
    for name, value in {
        "HF_HUB_CACHE": str(home / "hub"),
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("puna.hub.fetch.time", SimpleNamespace(sleep=lambda seconds: None))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, url = self.hub, urlsplit(self.path)
        headers = {name.title(): value for name, value in self.headers.items()}
        hub.requests.append((self.command, unquote(url.path), headers))
        parts = url.path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._content(unquote("/".join(parts[1:])), None)
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), [unquote(part) for part in parts[4:]]
        elif len(parts) > 4 and parts[2] == "resolve":
            name, rest = "/".join(parts[:2]), [unquote(part) for part in parts[2:]]
        else:
            return self._error(404, "")
        repository = hub.repositories.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not allowed):
            known = "Authorization" in self.headers
            return self._error(404 if known else 401, "RepoNotFound")
        kind, *tail = rest or ["info"]
        if kind == "refs":
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit_of(files)}
                for branch, files in repository.branches.items()
            ]
            return self._json({"branches": branches, "converts": [], "tags": []})
        revision = tail[0] if tail else "main"
        files = repository.files(revision)
        if files is None:
            return self._error(404, "RevisionNotFound")
        if kind == "tree":
            return self._tree(files, int(parse_qs(url.query).get("cursor", ["0"])[0]))
        if kind == "resolve":
            if repository.gated and not allowed:
                known = "Authorization" in self.headers
                return self._error(403 if known else 401, "GatedRepo")
            return self._resolve(name, files, "/".join(tail[1:]))
        card = {"license": repository.license} if repository.license else {}
        tags = [f"license:{repository.license}"] if repository.license else []
        return self._json(
            {"id": name, "sha": commit_of(files), "tags": tags, "cardData": card, "siblings": []}
        )

    def _tree(self, files: Mapping[str, bytes], begin: int) -> None:
        entries: list[dict[str, Any]] = []
        for path, data in files.items():
            size = self.hub.claimed_sizes.get(path, len(data))
            entry = {"type": "file", "path": path, "size": size, "oid": digest_of(path, data)}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": entry["oid"], "size": size, "pointerSize": 134}
                entry["oid"] = hashlib.sha1(path.encode()).hexdigest()
            entries.append(entry)
        entries.append({"type": "directory", "path": "folder", "oid": "0" * 40, "size": 0})
        page = entries[begin : begin + PAGE]
        link = {}
        if begin + PAGE < len(entries):
            path = urlsplit(self.path).path
            link = {
                "Link": f'<{self.hub.url}{path}?recursive=True&cursor={begin + PAGE}>; rel="next"'
            }
        self._json(page, link)

    def _resolve(self, name: str, files: Mapping[str, bytes], path: str) -> None:
        if path not in files:
            return self._error(404, "EntryNotFound")
        digest = digest_of(path, files[path])
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{digest}"'}
        if not path.endswith(LFS_SUFFIXES):
            return self._content(f"{name}/{commit_of(files)}/{path}", headers)
        headers = {
            "X-Repo-Commit": commit_of(files),
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(files[path])),
            "Location": f"{self.hub.cdn_url}/cdn/{name}/{commit_of(files)}/{path}",
        }
        return self._send(302, b"", headers)

    def _content(self, where: str, headers: Mapping[str, str] | None) -> None:
        owner, repository, commit, path = where.split("/", 3)
        files = self.hub.repositories[f"{owner}/{repository}"].files(commit)
        assert files is not None
        if self.command == "GET" and self.hub.refuse.get(path):
            return self._error(self.hub.refuse[path].pop(0), "")
        data = files[path]
        if path in self.hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, out = 200, dict(headers or {})
        wanted = self.headers.get("Range", "")
        if wanted and self.hub.ranges:
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            out["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[begin:]
        cuts = self.hub.cut.get(path) if self.command == "GET" else None
        return self._send(status, data, out, cuts.pop(0) if cuts else None)

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._send(200, data, {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, data: bytes, headers: Mapping[str, str], cut: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            sent = data if cut is None else data[:cut]
            for begin in range(0, len(sent), 1 << 16):
                if self.hub.stall and begin and begin + (1 << 16) >= len(sent):
                    threading.Event().wait(60)
                self.wfile.write(sent[begin : begin + (1 << 16)])
        except OSError:  # the client has gone
            self.close_connection = True
        if cut is not None:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""
