"""Documents out of files, and what is said of files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from puna.data.text import documents, records

STORIES = ["One llama.\nTwo lines.", "Ñandú 🦙\u2028 same line", "  spaces stay  "]
JSONL = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in STORIES).encode()


def put(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(zstandard.compress(data) if name.endswith(".zst") else data)
    return path


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_documents_of_every_kind(tmp_path: Path, suffix: str) -> None:
    assert list(documents(put(tmp_path, f"a.jsonl{suffix}", JSONL))) == STORIES
    text = "\n".join(STORIES)
    assert list(documents(put(tmp_path, f"a.txt{suffix}", text.encode()))) == [text]
    separated = put(tmp_path, f"b.txt{suffix}", "\n<|end|>\n".join(STORIES).encode())
    assert list(documents(separated, separator="<|end|>")) == STORIES
    assert list(documents(separated)) == ["\n<|end|>\n".join(STORIES)]


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    lines = b'{"text": ""}\n\n{"text": " \\n"}\n{"text": "kept"}'
    assert list(documents(put(tmp_path, "a.jsonl", lines))) == ["kept"]
    text = b"--\n--\nkept\n\n--\n \n--\n"
    assert list(documents(put(tmp_path, "a.txt", text), separator="--")) == ["kept"]
    assert list(documents(put(tmp_path, "b.txt", b""))) == []
    assert list(documents(put(tmp_path, "b.txt.zst", b""))) == []


def test_windows_line_ends(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", b"one\r\n--\r\ntwo\r\n")
    assert [d.strip() for d in documents(path, separator="--")] == ["one", "two"]
    path = put(tmp_path, "a.jsonl", JSONL.replace(b"\n", b"\r\n"))
    assert list(documents(path)) == STORIES


def test_records_are_any_json(tmp_path: Path) -> None:
    path = put(tmp_path, "a.jsonl.zst", b'{"a": 1}\n\n[2]\n3')
    assert list(records(path)) == [{"a": 1}, [2], 3]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"fine\nalso\nca\xe9\n", r"a.txt, line 3: not UTF-8 \(byte 0xe9 at 2\)"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "ca\xe9"}\n', "a.jsonl, line 2: not UTF-8"),
        ("a.jsonl.zst", b'{"text": "a"}\n\n{"text": \n', "line 3: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"content": "b"}', "record 2: no field 'text'"),
        ("a.jsonl", b'{"text": 5}', "record 1: no field 'text'"),
        ("a.jsonl", b'["text"]', "record 1: no field 'text'"),
        ("a.csv", b"text\n", "a.csv: unknown kind"),
        ("txt", b"text\n", None),
    ],
)
def test_bad_files_are_named_with_the_line(
    tmp_path: Path, name: str, data: bytes, message: str | None
) -> None:
    path = put(tmp_path, name, data)
    if message is None:  # a file called `txt` is of the kind `txt`
        assert list(documents(path)) == [data.decode()]
        return
    with pytest.raises(ValueError, match=message):
        list(documents(path))


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path / "none.jsonl.zst"):
        with pytest.raises(ValueError, match=f"no such text file: .*{path.name}"):
            list(documents(path))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match="no such text file"):
        list(documents(tmp_path / "folder.txt"))


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.999])
def test_a_cut_off_zst_file_is_an_error(tmp_path: Path, keep: float) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % (number**3) for number in range(20_000))
    whole = put(tmp_path, "a.jsonl.zst", lines)
    assert sum(1 for _ in documents(whole)) == 20_000
    data = whole.read_bytes()
    whole.write_bytes(data[: max(2, int(len(data) * keep))])
    with pytest.raises(ValueError, match=r"a.jsonl.zst is damaged after line \d+: .*ends inside"):
        list(documents(whole))


def test_zst_files_of_several_frames_and_of_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    frames = [zstandard.compress(line + b"\n") for line in JSONL.splitlines()]
    path.write_bytes(frames[0] + skippable + b"".join(frames[1:]))
    assert list(documents(path)) == STORIES
    path.write_bytes(frames[0] + b"no frame at all")
    with pytest.raises(ValueError, match="damaged after line"):
        list(documents(path))


def test_binary_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("as UTF-16".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"a.txt, document 1: a NUL character, as in no text"):
        list(documents(tmp_path / "a.txt"))
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"text": "b\\u0000d"}\n')
    with pytest.raises(ValueError, match=r"b.jsonl, document 2: a NUL character"):
        list(documents(tmp_path / "b.jsonl"))
