"""The Hugging Face cache on this machine: where a model lies, which there are, removing one.

Layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): a folder
`models--OWNER--NAME` holds `blobs/` (content by checksum), `refs/` (branch -> commit) and
`snapshots/COMMIT/` (file names, links to blobs).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from puna.hub.names import HubName
from puna.hub.select import (
    SeveralModelsError,
    first_files,
    is_single,
    is_weight,
    matching_files,
    missing_parts,
    model_files,
)

PARTIAL = ".incomplete"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository, as far as it is here. `revisions` are its branches and tags."""

    repository: str
    revisions: tuple[str, ...]
    commit: str
    path: Path

    @property
    def names(self) -> list[str]:
        """The files that are here, relative to `path`."""
        files = (file for file in self.path.rglob("*") if file.is_file())
        return sorted(file.relative_to(self.path).as_posix() for file in files)

    @property
    def num_bytes(self) -> int:
        return sum((self.path / name).stat().st_size for name in self.names)

    def models(self) -> dict[str, Path]:
        """What of it opens as a model: the rest of its hub name (empty or a file) -> path."""
        names = self.names
        try:
            chosen = [name for name in model_files(names) if is_weight(name)]
        except SeveralModelsError:
            chosen = []
        if chosen and not is_single(chosen[0]):
            return {} if missing_parts(chosen) else {"": self.path}
        whole = (n for n in first_files(names) if not missing_parts(matching_files(names, n)))
        return {name: self.path / name for name in whole}


def cache_folder() -> Path:
    """Where the `huggingface_hub` library keeps what it downloads (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def snapshots(repository: str = "") -> list[Snapshot]:
    """All that is here, or all of one repository, sorted by name."""
    folders = [repository_folder(repository)] if repository else _model_folders()
    found = []
    for folder in folders:
        commits = dict(_refs(folder))
        for path in sorted((folder / "snapshots").glob("*")):
            refs = tuple(sorted(ref for ref, commit in commits.items() if commit == path.name))
            found.append(Snapshot(_repository(folder), refs, path.name, path))
    return found


def stopped() -> dict[str, int]:
    """Repositories of which downloads were stopped -> bytes that came."""
    sizes = {
        _repository(folder): sum(f.stat().st_size for f in folder.glob(f"blobs/*{PARTIAL}"))
        for folder in _model_folders()
    }
    return {repository: size for repository, size in sizes.items() if size}


def matching(name: HubName) -> Snapshot | None:
    """The snapshot that `name`'s revision means, whatever is in it; None if it is not here."""
    for snapshot in snapshots(name.repository):
        if name.revision in snapshot.revisions or name.revision == snapshot.commit:
            return snapshot
    return None


def find_pulled(name: HubName) -> Path | None:
    """The file or folder to open for `name`, None if it is not (wholly) here.

    Raises ValueError where the name means several models.
    """
    snapshot = matching(name)
    if snapshot is None:
        return None
    names = snapshot.names
    try:
        files = [file for file in model_files(names, name.file) if is_weight(file)]
    except SeveralModelsError as error:
        raise ValueError(choose_one(name, error.files)) from None
    if not files or missing_parts(files):
        return None
    if not is_single(files[0]):
        return (snapshot.path / files[0]).parent
    single = first_files(files)
    if len(single) > 1:
        raise ValueError(choose_one(name, single))
    return snapshot.path / single[0]


def choose_one(name: HubName, files: Sequence[str], shown: Sequence[str] = ()) -> str:
    """Says that one of `files` must be named; `shown` is how they are listed, with sizes say."""
    example = HubName(name.repository, name.revision, files[0])
    listed = ", ".join(shown or files)
    return f"{name} holds {len(files)} models: {listed}; name one, as in {example}"


def remove(doomed: Sequence[Path], repository: str) -> int:
    """Deletes these snapshot files, and content that no other file of the repository shares.

    Gives the bytes freed. Empty snapshots go, with the branches that point to them; stopped
    downloads go with the last snapshot.
    """
    folder = repository_folder(repository)
    snapshots_folder = folder / "snapshots"
    left = {path for path in snapshots_folder.rglob("*") if path.is_symlink() or path.is_file()}
    left -= set(doomed)
    before = _disk_bytes(folder)
    if not left:
        return max(before, _remove_all(folder))
    kept = {_blob(path) for path in left}
    for path in doomed:
        blob = _blob(path)
        path.unlink()
        if blob != path and blob not in kept:
            blob.unlink(missing_ok=True)
    for path in sorted(snapshots_folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for ref, commit in _refs(folder):
        if not (snapshots_folder / commit).exists():
            (folder / "refs" / ref).unlink()
    return before - _disk_bytes(folder)


def _remove_all(folder: Path) -> int:
    """Deletes a repository's folder, and by the library what its content shares with others'."""
    from huggingface_hub import scan_cache_dir

    scan = scan_cache_dir(folder.parent)
    # Copies of a repository have the same commits: only this one's are to go.
    scan = replace(scan, repos=frozenset(repo for repo in scan.repos if repo.repo_path == folder))
    commits = [revision.commit_hash for repo in scan.repos for revision in repo.revisions]
    strategy = scan.delete_revisions(*commits)
    strategy.execute()
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
    return strategy.expected_freed_size


def _model_folders() -> Iterator[Path]:
    return iter(sorted(cache_folder().glob("models--*--*")))


def _repository(folder: Path) -> str:
    return folder.name.removeprefix("models--").replace("--", "/", 1)


def _refs(folder: Path) -> Iterator[tuple[str, str]]:
    """(branch or tag, commit) of a repository's folder; files of no commit are passed over."""
    refs = folder / "refs"
    for file in sorted(refs.rglob("*")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if file.is_file() and _COMMIT.fullmatch(commit := file.read_text().strip()):
                yield file.relative_to(refs).as_posix(), commit


def _blob(path: Path) -> Path:
    """The first file that a snapshot's link points to; `path` itself where links are not used."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _disk_bytes(folder: Path) -> int:
    """Bytes of all regular files below: links count for nothing."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(file.stat().st_size for file in files)
