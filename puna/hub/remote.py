"""What a hub has: the files of a repository at a revision, with their sizes and checksums."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from puna.hub.errors import explained
from puna.hub.names import HubName
from puna.hub.select import is_weight, model_files

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA1_OR_SHA256 = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_LISTED = 40  # branches or files in one error


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as the hub lists it.

    `digest` names its content, in the cache too: SHA-256 of a large file (64 hexadecimal digits),
    git's SHA-1 of a small one (40).
    """

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: what it holds, and the licence that its card names."""

    name: HubName
    commit: str
    license: str
    files: tuple[RemoteFile, ...]

    def chosen(self) -> tuple[RemoteFile, ...]:
        """The files that `name` means. ValueError if they are none; `select.SeveralModelsError`."""
        by_path = {file.path: file for file in self.files}
        name = self.name
        paths = model_files(by_path, name.file)
        if not any(name.file or is_weight(path) for path in paths):
            what = f"file '{name.file}'" if name.file else "weights that Puna can read"
            listed = sorted(path for path in by_path if is_weight(path))[:_MAX_LISTED]
            there = f"; it has {', '.join(listed)}" if listed else ""
            raise ValueError(f"{HubName(name.repository, name.revision)} has no {what}{there}")
        chosen = tuple(by_path[path] for path in paths)
        for file in chosen:
            _check(file)
        return chosen


def endpoint_url(endpoint: str | None) -> str:
    """The hub's address: as given, else the library's (HF_ENDPOINT, or huggingface.co)."""
    from huggingface_hub import constants

    url = (endpoint or constants.ENDPOINT).rstrip("/")
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"the hub's address '{url}' must begin with https:// or http://")
    return url


def list_files(name: HubName, endpoint: str) -> Listing:
    """Asks the hub what `name`'s repository holds. ValueError says why it does not tell."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.hf_api import RepoFile

    api = HfApi(endpoint=endpoint, library_name="puna")
    with explained(name, endpoint), _hub_answers(endpoint):
        try:
            info = api.model_info(name.repository, revision=name.revision)
        except RevisionNotFoundError:
            raise ValueError(_no_revision(name, api.list_repo_refs(name.repository))) from None
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit):
            raise TypeError(f"commit {commit[:80]!r}")
        tree = api.list_repo_tree(name.repository, recursive=True, revision=commit)
        files = [
            RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else entry.blob_id)
            for entry in tree
            if isinstance(entry, RepoFile)
        ]
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    card = info.card_data.get("license") if info.card_data else None
    return Listing(name, commit, str(card or next(iter(tags), "")), tuple(files))


@contextlib.contextmanager
def _hub_answers(endpoint: str) -> Iterator[None]:
    """ValueError where an answer lacks what the library looks for in it."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{endpoint} does not answer as a hub does ({error!r})") from None


def _check(file: RemoteFile) -> None:
    """ValueError for a file that would lie outside of the cache, or cannot be verified."""
    parts_ok = all(part not in ("", ".", "..") for part in file.path.split("/"))
    path_ok = parts_ok and file.path.isprintable() and "\\" not in file.path
    size_ok = isinstance(file.size, int) and file.size >= 0
    if not (path_ok and size_ok and _SHA1_OR_SHA256.fullmatch(file.digest)):
        raise ValueError(f"the hub lists a file that cannot be: {file}")


def _no_revision(name: HubName, refs: object) -> str:
    names = [ref.name for kind in ("branches", "tags") for ref in getattr(refs, kind, [])]
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return (
        f"{name.repository} has no revision '{name.revision}'; it has "
        f"{', '.join(names[:_MAX_LISTED])}{more}"
    )
