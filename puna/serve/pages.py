"""The web chat's files at `/` and `/web/`, with headers that let no text become a script."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

WEB = Path(__file__).with_name("web")
PAGE = "index.html"

# What is served, by the end of its name. Licences and notes lie beside the files and are not.
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}

# Scripts, styles and requests of this origin alone; nothing inline, no frames, no forms.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "manifest-src 'self'",
    )
)

HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
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


def page_routes() -> list[Route]:
    """The routes of the web chat, to be mounted in an application: `/` and `/web/{path}`.

    The files are read once, here. A path is looked up among their names and never opened, so no
    path leads out of the folder.
    """
    assets = _read_assets(WEB)
    page = assets.pop(PAGE)

    async def index(request: Request) -> Response:
        return _answer(request, page)

    async def asset(request: Request) -> Response:
        found = assets.get(request.path_params["path"])
        if found is None:
            raise HTTPException(404, "there is no such file in the web chat")
        return _answer(request, found)

    return [
        Route("/", index, name="web_chat", include_in_schema=False),
        Route("/web/{path:path}", asset, name="web_chat_file", include_in_schema=False),
    ]


def _read_assets(folder: Path) -> dict[str, _Asset]:
    assets = {}
    for path in sorted(folder.rglob("*")):
        media_type = MEDIA_TYPES.get(path.suffix)
        if media_type is not None and path.is_file():
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            assets[path.relative_to(folder).as_posix()] = _Asset(content, media_type, etag)
    return assets


def _answer(request: Request, asset: _Asset) -> Response:
    headers = HEADERS | {"ETag": asset.etag}
    if_none_match = request.headers.get("if-none-match", "")
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if asset.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, headers=headers, media_type=asset.media_type)
