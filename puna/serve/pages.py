"""The pages and their files, with headers that let no text become a script."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WEB = Path(__file__).with_name("web")

# Which page is where: of the API alone, with the chat, and of `puna compare`.
DOCS = {"/docs": "docs.html"}
CHAT = {"/": "index.html"} | DOCS
COMPARE = {"/": "compare.html"}

# What is served, by the end of its name. Licences and notes lie beside the files and are not.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}

# Scripts, styles and requests of this origin alone; nothing inline, no frames, no forms.
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "font-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "manifest-src": "'self'",
}
# RapiDoc styles its elements inline; it shows nothing that a model wrote.
_DOCS_POLICY = _POLICY | {"style-src": "'self' 'unsafe-inline'"}


def _headers(policy: dict[str, str]) -> dict[str, str]:
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # Kept by browsers, and asked for again by its ETag: a new version shows at once.
        "Cache-Control": "no-cache",
    }


@dataclass(frozen=True)
class _Asset:
    content: bytes
    media_type: str
    etag: str
    headers: dict[str, str]


def page_routes(pages: Mapping[str, str] = CHAT) -> list[Route]:
    """The pages, file by path, and what they need at `/web/`.

    The files are read once, here. A path is looked up among their names and never opened, so no
    path leads out of the folder.
    """
    assets = _read_assets(WEB)

    async def page(request: Request) -> Response:
        return _answer(request, assets[pages[request.scope["path"]]])

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["path"])
        if found is None or found.media_type == MEDIA_TYPES[".html"]:  # pages have their own paths
            raise HTTPException(404)
        return _answer(request, found)

    return [
        *(Route(path, page, include_in_schema=False) for path in pages),
        Route("/web/{path:path}", asset, include_in_schema=False),
    ]


def _read_assets(folder: Path) -> dict[str, _Asset]:
    assets = {}
    for path in sorted(folder.rglob("*")):
        media_type = MEDIA_TYPES.get(path.suffix)
        if media_type is not None and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            name = path.relative_to(folder).as_posix()
            headers = _headers(_DOCS_POLICY if name == DOCS["/docs"] else _POLICY)
            assets[name] = _Asset(content, media_type, etag, headers | {"ETag": etag})
    return assets


def _answer(request: Request, asset: _Asset) -> Response:
    if_none_match = request.headers.get("if-none-match", "")
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=asset.headers)
    return Response(asset.content, headers=asset.headers, media_type=asset.media_type)
