"""Downloads files into the Hugging Face cache: resumed by bytes, verified by checksum.

The `huggingface_hub` library deletes what an interrupted download left; a model of gigabytes is
worth keeping. So the content is fetched here, to `blobs/CHECKSUM.incomplete`, and the library only
links whole, verified blobs into the cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from puna.hub.cache import PARTIAL, cache_folder, repository_folder
from puna.hub.errors import explained, transport_error
from puna.hub.remote import Listing, RemoteFile

_CHUNK = 1 << 20  # bytes
_TRIES = 4  # in a row that bring nothing new
_SPARE = 64 << 20  # bytes that are left free on the disk
_SHA1_DIGITS = 40
_PARTIAL_CONTENT = 206
_PASSING = (408, 429, 500, 502, 503, 504)  # refusals that may be over if one waits


def present_bytes(listing: Listing, file: RemoteFile) -> int:
    """How much of a file is here: all of it, a partial download, or nothing."""
    blob = _blob(listing, file)
    if blob.is_file() and blob.stat().st_size == file.size:
        return file.size
    partial = _partial(blob)
    return min(partial.stat().st_size, file.size) if partial.is_file() else 0


def check_space(listing: Listing, files: Sequence[RemoteFile]) -> None:
    """ValueError if the disk of the cache has no room for what is still to come."""
    needed = sum(file.size - present_bytes(listing, file) for file in files)
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE > free:
        raise ValueError(
            f"{listing.name} needs {needed / 1e9:.1f} GB more, and {folder} has {free / 1e9:.1f} "
            "GB free: make room, or set HF_HOME to a folder on another disk"
        )


def fetch(
    listing: Listing,
    files: Sequence[RemoteFile],
    endpoint: str,
    advance: Callable[[int], None] = lambda count: None,
) -> Path:
    """Downloads what is not here yet and gives the snapshot's folder.

    `advance(n)` is called for n bytes more (or fewer, where a server starts anew), those already
    here included. The snapshot appears only when all its files are whole. ValueError says what
    went wrong; interrupted, it leaves what the next call goes on with.
    """
    from huggingface_hub import hf_hub_download

    name = listing.name
    with explained(name, endpoint, "; what came is kept, pulling again goes on from there"):
        for file in files:
            _fetch_blob(listing, file, endpoint, advance)
        for file in files:
            hf_hub_download(
                name.repository,
                file.path,
                revision=listing.commit,
                endpoint=endpoint,
                library_name="puna",
            )
    folder = repository_folder(name.repository)
    if name.revision != listing.commit:
        ref = folder / "refs" / name.revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(listing.commit)
    return folder / "snapshots" / listing.commit


def _fetch_blob(
    listing: Listing, file: RemoteFile, endpoint: str, advance: Callable[[int], None]
) -> None:
    from huggingface_hub.utils import WeakFileLock

    blob = _blob(listing, file)
    lock = cache_folder() / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):  # the library's own: two programs do not download one file twice
        if blob.is_file() and blob.stat().st_size == file.size:
            advance(file.size)
            return
        try:
            with open(_partial(blob), "a+b") as partial:
                digest = _download(listing, file, endpoint, partial, advance)
        except BaseException:
            if not _partial(blob).stat().st_size:
                _drop(_partial(blob))
            raise
        if digest != file.digest:
            _drop(_partial(blob))
            raise ValueError(
                f"{file.path}: what came has the checksum {digest}, the hub lists {file.digest}; "
                "it was deleted: pull again, and report it to the repository if it stays so"
            )
        _partial(blob).replace(blob)


def _download(
    listing: Listing,
    file: RemoteFile,
    endpoint: str,
    partial: BinaryIO,
    advance: Callable[[int], None],
) -> str:
    """Completes `partial` and gives its checksum; a connection that breaks is made again."""
    digest = _new_digest(file)
    if partial.seek(0, os.SEEK_END) > file.size:
        partial.truncate(0)
    partial.seek(0)
    while chunk := partial.read(_CHUNK):
        digest.update(chunk)
        advance(len(chunk))
    failures = 0
    while (begin := partial.tell()) < file.size:
        problem: Exception = ConnectionError("it ends the file early")
        try:
            with _opened(listing, file, endpoint, begin) as response:
                if begin and response.status_code != _PARTIAL_CONTENT:  # it begins at the start
                    advance(-begin)
                    partial.seek(0)
                    partial.truncate()
                    digest = _new_digest(file)
                for chunk in response.iter_bytes():
                    partial.write(chunk)
                    digest.update(chunk)
                    advance(len(chunk))
                    if partial.tell() > file.size:
                        break
        except transport_error() as error:
            refusal = getattr(error, "response", None)  # None: it was no answer that failed
            if refusal is not None and refusal.status_code not in _PASSING:
                raise
            problem = error
        failures = 0 if partial.tell() > begin else failures + 1
        if failures == _TRIES:
            raise problem
        if partial.tell() < file.size:
            time.sleep(0.5 * 2**failures)
    partial.flush()
    os.fsync(partial.fileno())
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(listing: Listing, file: RemoteFile, endpoint: str, begin: int) -> Iterator[Any]:
    """The hub's response with a file's bytes from `begin` on."""
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    name = listing.name.repository
    url = hf_hub_url(name, file.path, revision=listing.commit, endpoint=endpoint)
    headers = build_hf_headers(library_name="puna") | {"Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # A redirect to another host (where large files lie) is followed without the token.
    with get_session().stream(
        "GET", url, headers=headers, timeout=timeout, follow_redirects=True
    ) as response:
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            response.read()
        hf_raise_for_status(response)
        yield response


def _drop(partial: Path) -> None:
    """Deletes a partial file, and the repository's folder if nothing else is in it."""
    partial.unlink()
    with contextlib.suppress(OSError):  # not empty
        partial.parent.rmdir()
        partial.parent.parent.rmdir()


def _new_digest(file: RemoteFile) -> hashlib._Hash:
    if len(file.digest) == _SHA1_DIGITS:
        return hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    return hashlib.sha256()


def _blob(listing: Listing, file: RemoteFile) -> Path:
    return repository_folder(listing.name.repository) / "blobs" / file.digest


def _partial(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}{PARTIAL}")
