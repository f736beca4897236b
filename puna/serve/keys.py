"""API keys that have names: read, compared in constant time, required of every request."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from puna.serve.asgi import App, Receive, Scope, Send, header_values
from puna.serve.errors import APIError, send_error
from puna.serve.facts import facts_of

MIN_KEY_LENGTH = 16
MAX_KEY_LENGTH = 512
DEFAULT_NAME = "default"  # of a key that comes alone, from PUNA_API_KEY
PUBLIC_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
PUBLIC_PREFIXES = ("/web/",)

_SEPARATOR = re.compile(r"\s*:\s*|\s+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(
    r"[!#-\[\]-~]+"
)  # visible ASCII but for quotes and backslashes: no escapes in logs


class Keys:
    """Keys by name. Requests are held against digests, all of equal length; nothing shows a key."""

    def __init__(self, keys: Iterable[tuple[str, str]]) -> None:
        """`keys`: (name, key). Raises ValueError on what `check_key` refuses and on repetitions."""
        self._digests: dict[str, bytes] = {}
        self._keys: list[str] = []
        for name, key in keys:
            check_key(name, key)
            if name in self._digests:
                raise ValueError(f"two API keys are named {name!r}: give each its own name")
            if key in self._keys:
                raise ValueError(f"the API key named {name!r} is another's too: make a new one")
            self._digests[name] = _digest(key.encode())
            self._keys.append(key)

    def __len__(self) -> int:
        return len(self._digests)

    def __repr__(self) -> str:
        return f"Keys({', '.join(self._digests)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._digests)

    def name_of(self, presented: bytes) -> str | None:
        """Whose key this is, or None. Every key is compared, whether one fitted before or not."""
        digest = _digest(presented)
        found = None
        for name, expected in self._digests.items():
            if hmac.compare_digest(digest, expected):
                found = name
        return found

    def redact(self, text: str) -> str:
        """The text without the keys, for what is logged."""
        for key in self._keys:
            text = text.replace(key, "[API key]")
        return text


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def check_key(name: str, key: str) -> None:
    """Raises ValueError, which never shows the key, for names and keys that would not serve."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"an API key's name has 1 to 64 letters, digits, '.', '_' or '-', not {name[:64]!r}"
        )
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"the API key named {name!r} has other than visible ASCII characters, a quote or a "
            "backslash: make a new one"
        )
    if not MIN_KEY_LENGTH <= len(key) <= MAX_KEY_LENGTH:
        raise ValueError(
            f"the API key named {name!r} has {len(key)} characters, not {MIN_KEY_LENGTH} to "
            f"{MAX_KEY_LENGTH}: make one with `openssl rand -hex 24`"
        )


def parse_keys(text: str, where: str) -> Keys:
    """Keys of lines `name:key` or `name key`; `#` starts a comment line.

    Raises ValueError naming `where` (a file, a variable) and the line.
    """
    keys: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, *rest = _SEPARATOR.split(line, maxsplit=1)
        try:
            if not rest:
                raise ValueError("an API key needs a name: write `name:key`")
            keys.append((name, rest[0]))
            Keys(keys)
        except ValueError as error:
            raise ValueError(f"{where}, line {number}: {error}") from None
    if not keys:
        raise ValueError(f"{where} has no API key: write `name:key`, one a line")
    return Keys(keys)


def read_keys(path: Path, warn: Callable[[str], None]) -> Keys:
    """The keys of a file. `warn` is told of one that other users of this machine can read."""
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read API keys from {path}: {reason}") from None
    if mode & 0o004:
        warn(f"{path} holds API keys and every user can read it: chmod 600 {path}")
    return parse_keys(text, str(path))


def environment_keys(key: str | None, keys: str | None) -> Keys | None:
    """What PUNA_API_KEY (one key) and PUNA_API_KEYS (`name:key`, by lines or commas) hold."""
    if key and keys:
        raise ValueError("PUNA_API_KEY and PUNA_API_KEYS are both set: unset one")
    if keys:
        return parse_keys(keys.replace(",", "\n"), "PUNA_API_KEYS")
    if key:
        try:
            return Keys([(DEFAULT_NAME, key)])
        except ValueError as error:
            raise ValueError(f"PUNA_API_KEY: {error}") from None
    return None


class RequireKey:
    """ASGI: answers 401 to what has no known bearer key and asks for more than a public page."""

    def __init__(self, app: App, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_public(scope["path"]):
            return await self.app(scope, receive, send)
        presented = bearer(scope)
        name = None if presented is None else self.keys.name_of(presented)
        if name is None:
            said = "needs an API key" if presented is None else "has an API key that is not known"
            error = APIError(
                401,
                f"The request {said}: send the header `Authorization: Bearer KEY`.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            return await send_error(send, error)
        facts_of(scope).key_name = name
        return await self.app(scope, receive, send)


def is_public(path: str) -> bool:
    """Whether a path needs no key: the pages, their files, and whether the server is there."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES)


def bearer(scope: Scope) -> bytes | None:
    """The token of the request's Authorization header; None without, or with another scheme."""
    values = header_values(scope, b"authorization")
    if len(values) != 1:
        return None
    scheme, _, token = values[0].partition(b" ")
    token = token.strip()
    return token if scheme.lower() == b"bearer" and token else None
