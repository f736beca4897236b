"""Every kind of input is read; what is damaged or unknown is one line that names it."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from puna.data.pipeline.build import build
from puna.data.pipeline.config import PipelineConfig, config_from_dict, read_config
from puna.data.pipeline.plan import make_plan
from puna.data.pipeline.readers import read_file, read_hub
from tests.data.corpus import prose

TEXTS = ["One llama.", "Ñandú 🦙", " "]


def configured(folder: Path, **source: Any) -> PipelineConfig:
    table = {"name": "s", "licence": "MIT"} | source
    return config_from_dict({"source": [table]}, folder)


def texts(config: PipelineConfig) -> list[str]:
    source = config.sources[0]
    pieces = make_plan(config).pieces
    return [text for piece in pieces for text, _ in read_file(source, Path(piece.path))]


def put(path: Path, data: bytes) -> Path:
    pack = {".zst": zstandard.compress, ".gz": gzip.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize("suffix", ["", ".zst", ".gz"])
def test_jsonl_and_text(tmp_path: Path, suffix: str) -> None:
    lines = "".join(json.dumps({"content": text, "url": "u"}) + "\n" for text in TEXTS)
    put(tmp_path / f"a.jsonl{suffix}", lines.encode())
    config = configured(tmp_path, path=["."], text_key="content")
    assert texts(config) == TEXTS
    (_, metadata), *_ = read_file(config.sources[0], tmp_path / f"a.jsonl{suffix}")
    assert metadata == {"url": "u"}
    put(tmp_path / f"b.txt{suffix}", "\n--\n".join(TEXTS).encode())
    assert texts(configured(tmp_path, path=["b.*"], separator="--")) == TEXTS


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS, "title": ["a", "b", "c"]}), tmp_path / "a.parquet")
    config = configured(tmp_path, path=["a.parquet"])
    assert texts(config) == TEXTS
    assert [m["title"] for _, m in read_file(config.sources[0], tmp_path / "a.parquet")] == [
        "a", "b", "c",
    ]  # fmt: skip


def test_warc(tmp_path: Path) -> None:
    page = f"<html><body><nav>Home</nav><article><p>{prose(1)}</p></article></body></html>"
    http = f"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n{page}"
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        "WARC-Target-URI: https://a.example/b\r\nWARC-Date: 2022-09-01T00:00:00Z\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"WARC-Identified-Payload-Type: text/html\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    put(tmp_path / "a.warc.gz", f"{head}{http}\r\n\r\n".encode())
    ((text, metadata),) = read_file(
        configured(tmp_path, path=["a.warc.gz"]).sources[0], tmp_path / "a.warc.gz"
    )
    assert text == prose(1)
    assert metadata["url"] == "https://a.example/b"


def test_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    numbered = [f"Story {number}." for number in range(5)]
    put(tmp_path / "a.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in numbered).encode())
    options = {"data_files": str(tmp_path / "a.jsonl"), "split": "train"}
    config = configured(tmp_path, hub="json", hub_options=options, hub_parts=2)
    assert [piece.part for piece in make_plan(config).pieces] == [0, 1]
    parts = [[text for text, _ in read_hub(config.sources[0], part, 2)] for part in (0, 1)]
    assert sorted(parts[0] + parts[1]) == numbered
    assert parts[0] and parts[1]


def damaged(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Files by name, and what is said of each."""
    whole = zstandard.compress(b'{"text": "%s"}\n' % (b"llama " * 4000))
    table = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS}), table)
    zipped = gzip.compress(b'{"text": "a"}\n' * 100)
    return {
        "cut.jsonl.zst": (whole[:-9], "is damaged after line 0: the file ends inside"),
        "noise.jsonl.zst": (b"\x28\xb5\x2f\xfd" + b"\xff" * 40, "is damaged after line 0"),
        "noise.jsonl.gz": (b"no gzip", "is damaged after line 0: Not a gzipped file"),
        "cut.jsonl.gz": (zipped[:-12], "is damaged after line"),
        "a.jsonl": (b'{"text": "a"}\n{"text', "line 2: not valid JSON"),
        "b.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "record 2: no text in it"),
        "c.jsonl": (b"[1]\n", "record 1: not a JSON object"),
        "latin.txt": ("Ñandú".encode("latin-1"), "line 1: not UTF-8"),
        "cut.parquet": (table.getvalue()[:-20], "cannot be read: "),
        "noise.parquet": (b"\0" * 64, "cannot be read: "),
        "noise.warc": (b"no archive\r\n\r\n" * 9, "cannot be read: "),
    }


@pytest.mark.parametrize("name", damaged(Path()))
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    data, said = damaged(tmp_path)[name]
    (tmp_path / name).write_bytes(data)
    config = configured(tmp_path, path=[name])
    with pytest.raises(ValueError) as caught:
        build(config, tmp_path / "out", None)
    message = str(caught.value)
    assert message.startswith(str((tmp_path / name).resolve()))
    assert said in message and "\n" not in message


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "no sources: give at least one"),
    "table": ({"source": [{"name": "a"}], "stepz": {}}, "source a: 'licence' is missing"),
    "stepz": ({"stepz": {}}, "unknown key 'stepz'; known are source, steps, tokenize, run"),
    "key": ({"source": {"pth": "x"}}, "source s: unknown key 'pth'; known are name, licence"),
    "kind": ({"source": {"kind": "novel"}}, "unknown kind 'novel'; known are plain, gutenberg"),
    "both": ({"source": {"hub": "a/b"}}, "source s: give either path or hub"),
    "no licence": ({"source": {"licence": ""}}, "say under which licence"),
    "name": ({"source": {"name": "a/b"}}, "name 'a/b': letters, digits"),
    "twice": ({"more": {"name": "s"}}, "two sources are called s"),
    "upsample": ({"source": {"upsample": 0}}, "upsample must be above 0"),
    "type": ({"source": {"upsample": "3"}}, "source s.upsample must be a number, not '3'"),
    "step": ({"steps": {"gophr": {}}}, "steps: unknown step 'gophr'; known are boilerplate"),
    "threshold": ({"steps": {"gopher": {"min": 1}}}, "steps.gopher: unknown key 'min'"),
    "own": ({"source": {"steps": {"c4": {"x": 1}}}}, "source s: steps.c4: unknown key 'x'"),
    "value": ({"steps": {"gopher": {"min_words": 1.5}}}, "gopher.min_words must be a whole number"),
    "share": ({"steps": {"language": {"min_probability": 2}}}, "must be from 0 to 1, not 2"),
    "all": ({"source": {"steps": {"minhash": {"ngram": 3}}}}, "minhash compares all documents"),
    "workers": ({"run": {"workers": 0}}, "workers must be 1 or more"),
    "executor": ({"run": {"executor": "cloud"}}, "unknown executor 'cloud'; known are local"),
    "option": ({"run": {"options": {"time": "1h"}}}, "local has no option 'time'; known are"),
    "ours": ({"run": {"options": {"tasks": 2}}}, "run.options: local has no option 'tasks'"),
    "slurm": ({"run": {"executor": "slurm"}}, "run.options: slurm needs time and partition"),
    "sbatch": (
        {"run": {"executor": "slurm", "options": {"time": "1h", "partition": "cpu"}}},
        "there is no sbatch on this machine",
    ),
    "files": ({"source": {"path": ["none-*.txt"]}}, "source s: no files at"),
    "suffix": ({"source": {"path": ["a.doc"]}}, "is of an unknown kind; known are .txt"),
    "evaluation": ({"steps": {"decontaminate": {"evaluation": ["no"]}}}, "no evaluation sets at"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_configuration_is_one_line(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "a.txt").write_text("A story.")
    (tmp_path / "a.doc").write_text("A story.")
    changes, said = WRONG[case]
    source = {"name": "s", "licence": "MIT", "path": ["a.txt"]}
    values: dict[str, Any] = {"source": [source]} if changes else {}
    for key, value in changes.items():
        if key == "source" and isinstance(value, dict):
            source |= value
        elif key == "more":
            values["source"].append(source | value)
        else:
            values[key] = value
    if case == "all":
        values["source"].insert(0, source | {"name": "t", "steps": {}})
    with pytest.raises(ValueError) as caught:
        build(config_from_dict(values, tmp_path), tmp_path / "out", None)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.toml"
    path.write_text("[[source]\n")
    with pytest.raises(ValueError, match=r"corpus\.toml: not valid TOML"):
        read_config(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ValueError, match=r"corpus\.toml: not UTF-8"):
        read_config(path)


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    put(tmp_path / "a.warc", b"")
    config = configured(tmp_path, path=["a.warc"])
    with pytest.raises(ValueError, match=r"source s needs more to be read: .*puna\[crawl\]"):
        texts(config)
