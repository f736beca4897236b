"""The hub's parts, against a hub on the loopback and the `huggingface_hub` library's own view."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from puna.hub import cache, select
from puna.hub.fetch import check_space, fetch
from puna.hub.licenses import LICENSES, accept, is_accepted, license_of
from puna.hub.names import HubName, parse
from puna.hub.remote import list_files
from tests.hub_server import TOKEN, Hub, Repository, commit_of, digest_of, serve, use

WEIGHTS = os.urandom(300_000)
FILES = {
    "README.md": b"# A model\n",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same, pickled",
    "tokenizer.model": b"pieces",
}
TAKEN = ["README.md", "config.json", "tokenizer.model", "model.safetensors"]
BRANCH = "gptq-4bit-32g-actorder_True"
OTHER = {**FILES, "model.safetensors": os.urandom(1000)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with `some/model`, and an empty cache in `tmp_path`."""
    with serve(some__model=Repository({"main": FILES, BRANCH: OTHER})) as hub:
        use(monkeypatch, hub.url, tmp_path)
        yield hub
        huggingface_hub.close_session()


def pull(hub: Hub, name: str = "some/model") -> tuple[Path, int]:
    """(the snapshot, the sum of what the progress was told)."""
    listing = list_files(parse(name), hub.url)
    told: list[int] = []
    path = fetch(listing, listing.chosen(), hub.url, told.append)
    return path, sum(told)


def blobs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hub").glob("models--*/blobs/*"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubName("a/b")),
        ("a/b@main", HubName("a/b")),
        (f"TheBloke/L-GPTQ@{BRANCH}", HubName("TheBloke/L-GPTQ", BRANCH)),
        ("a/b@refs/pr/1:m.gguf", HubName("a/b", "refs/pr/1", "m.gguf")),
        ("a/b:sub/*Q4_K_M*", HubName("a/b", "main", "sub/*Q4_K_M*")),
        ("a/b:x:y@z", HubName("a/b", "main", "x:y@z")),
        ("llama-2-7b-chat", HubName("meta-llama/Llama-2-7b-chat-hf")),
        ("Llama2-70B", HubName("meta-llama/Llama-2-70b-hf")),
        ("llamaste/Llama-2-7b", HubName("meta-llama/Llama-2-7b")),
        ("TheBloke/Llama-2-7B-GGML", HubName("TheBloke/Llama-2-7B-GGML")),
    ],
)
def test_names(text: str, expected: HubName) -> None:
    assert parse(text) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "model", "a/b/c", "/a", "a/", "../x", "a/..", "a/b@", "a/b@x..y", "a/b@/x", "a/b@x/../y",
     "a/b@-/./x", "a b/c", "é/x", "llama-2-34b", "llama1-7b", "a/b@x\n"],
)  # fmt: skip
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"names no model|no revision|never released|on no hub"):
        parse(text)


SPLIT = [f"m.Q8_0-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
SHARDS = [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        # One form of the weights, the best; nothing of other frameworks, training or folders.
        (
            [*FILES, "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "training_args.bin",
             "original/consolidated.00.pth", "LICENSE.txt", "USE_POLICY.md"],
            "",
            ["LICENSE.txt", "README.md", "USE_POLICY.md", "config.json", "tokenizer.model",
             "model.safetensors"],
        ),
        ([*SHARDS, "model.safetensors.index.json", "consolidated.safetensors"], "",
         [*SHARDS, "model.safetensors.index.json"]),
        (["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "x.safetensors.bak"],
         "", ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]),
        (["consolidated.00.pth", "consolidated.01.pth", "params.json", "checklist.chk"], "",
         ["checklist.chk", "params.json", "consolidated.00.pth", "consolidated.01.pth"]),
        (["gptq_model-4bit-128g.safetensors", "quantize_config.json"], "",
         ["quantize_config.json", "gptq_model-4bit-128g.safetensors"]),
        (["adapter_config.json", "adapter_model.safetensors"], "",
         ["adapter_config.json", "adapter_model.safetensors"]),
        (["m.gguf", "config.json"], "", ["config.json", "m.gguf"]),
        (SPLIT, "", SPLIT),
        (["stories15M.bin", "tokenizer.bin"], "", ["tokenizer.bin", "stories15M.bin"]),
        (["a.txt", "model.onnx"], "", []),
        # A choice; parts bring each other.
        ([*SPLIT, "m.Q4_0.gguf", "README.md"], "m.Q4_0.gguf", ["README.md", "m.Q4_0.gguf"]),
        ([*SPLIT, "m.Q4_0.gguf"], SPLIT[1], SPLIT),
        ([*SPLIT, "m.Q4_0.gguf"], "*Q8*", SPLIT),
        ([*FILES], "pytorch*", ["README.md", "config.json", "tokenizer.model",
                                "pytorch_model.bin"]),
        (["a/m[1].gguf"], "a/m[1].gguf", ["a/m[1].gguf"]),
        (["m.gguf"], "*Q5*", []),
    ],
)  # fmt: skip
def test_files_that_a_model_needs(names: list[str], pattern: str, expected: list[str]) -> None:
    chosen = select.model_files(names, pattern)
    assert [n for n in chosen if select.is_weight(n)] == [
        n for n in expected if select.is_weight(n)
    ]
    assert sorted(chosen) == sorted(expected)


def test_several_models_are_the_users_choice() -> None:
    with pytest.raises(select.SeveralModelsError) as error:
        select.model_files([*SPLIT, "llama.ggmlv3.q4_0.bin", "config.json", "tokenizer.model"])
    assert error.value.files == ["llama.ggmlv3.q4_0.bin", SPLIT[0]]


def test_missing_parts() -> None:
    assert select.missing_parts([*SPLIT[:2], "x.gguf"]) == SPLIT[2:]
    assert select.missing_parts([*SPLIT, *SHARDS]) == []


def test_what_is_downloaded_is_what_the_library_finds(hub: Hub, tmp_path: Path) -> None:
    path, told = pull(hub)
    assert told == sum(len(FILES[name]) for name in TAKEN)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {n: FILES[n] for n in TAKEN}
    assert blobs(tmp_path) == sorted(digest_of(name, FILES[name]) for name in TAKEN)
    assert path.name == commit_of(FILES)
    for name in TAKEN:  # by the library, without network
        found = huggingface_hub.try_to_load_from_cache("some/model", name, constants.HF_HUB_CACHE)
        assert found == str(path / name)
    scan = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert not scan.warnings
    assert scan.size_on_disk == told
    assert cache.find_pulled(parse("some/model")) == path
    asked = len(hub.requests)
    assert pull(hub)[0] == path
    assert not [r for r in hub.requests[asked:] if "/cdn/" in r[1]]


def test_what_the_library_downloaded_is_not_downloaded_again(hub: Hub) -> None:
    huggingface_hub.hf_hub_download("some/model", "model.safetensors")
    before = len(hub.downloads("model.safetensors"))
    assert pull(hub)[1] == sum(len(FILES[name]) for name in TAKEN)
    assert len(hub.downloads("model.safetensors")) == before


def test_a_broken_connection_goes_on_by_range(hub: Hub) -> None:
    hub.cut["model.safetensors"] = [100_000, 0, 65_536]
    path, told = pull(hub)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = hub.downloads("model.safetensors")
    assert ranges[0] == ""
    assert len(ranges) == 4
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in ranges[1:]]
    assert 0 < starts[0] == starts[1] <= 100_000 < starts[2]
    assert told == sum(len(FILES[name]) for name in TAKEN)


def test_a_server_without_ranges_begins_anew(hub: Hub) -> None:
    hub.cut["model.safetensors"] = [100_000, 200_000]
    hub.ranges = False
    path, told = pull(hub)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert told == sum(len(FILES[name]) for name in TAKEN)


def test_passing_refusals_are_waited_for_and_others_not(hub: Hub) -> None:
    hub.refuse["model.safetensors"] = [503, 429]
    assert (pull(hub)[0] / "model.safetensors").read_bytes() == WEIGHTS
    hub.refuse["model.safetensors"] = [404]
    with pytest.raises(ValueError, match=f"some/model@{BRANCH}: .* answers 404"):
        pull(hub, f"some/model@{BRANCH}")
    assert not hub.refuse["model.safetensors"]


def test_a_connection_that_stays_broken_keeps_what_came(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [100_000, *[0] * 20]
    with pytest.raises(ValueError, match=r"cannot be reached.*what came is kept"):
        pull(hub)
    (partial,) = [name for name in blobs(tmp_path) if name.endswith(cache.PARTIAL)]
    assert partial == f"{digest_of('model.safetensors', WEIGHTS)}{cache.PARTIAL}"
    assert cache.find_pulled(parse("some/model")) is None
    assert cache.snapshots() == []  # nothing half there for others to open
    assert 0 < cache.stopped()["some/model"] <= 100_000
    hub.cut.clear()
    before = len(hub.downloads("model.safetensors"))
    assert (pull(hub)[0] / "model.safetensors").read_bytes() == WEIGHTS
    (again,) = hub.downloads("model.safetensors")[before:]
    assert again.startswith("bytes=")
    assert cache.stopped() == {}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_deleted(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.wrong.add(name)
    with pytest.raises(ValueError, match=f"{name}: .*checksum.*deleted"):
        pull(hub)
    assert cache.snapshots() == []
    assert not [blob for blob in blobs(tmp_path) if digest_of(name, FILES[name]) in blob]
    hub.wrong.clear()
    assert (pull(hub)[0] / name).read_bytes() == FILES[name]


def test_a_damaged_partial_file_is_noticed(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--some--model" / "blobs"
    folder.mkdir(parents=True)
    partial = folder / f"{digest_of('model.safetensors', WEIGHTS)}{cache.PARTIAL}"
    partial.write_bytes(b"x" * 50_000)
    with pytest.raises(ValueError, match="checksum"):
        pull(hub)
    assert not partial.exists()
    partial.write_bytes(b"x" * (len(WEIGHTS) + 1))  # longer than the file: begun anew
    assert (pull(hub)[0] / "model.safetensors").read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["some/model"].gated = True
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull(hub)
    with_token = {
        "Authorization" in headers for _, path, headers in hub.requests if "/cdn/" in path
    }
    assert with_token == {False}
    assert any(headers.get("Authorization") == f"Bearer {TOKEN}" for *_, headers in hub.requests)


def test_revisions_share_what_is_the_same(hub: Hub, tmp_path: Path) -> None:
    main, _ = pull(hub)
    downloads = len(hub.downloads("tokenizer.model"))
    branch, _ = pull(hub, f"some/model@{BRANCH}")
    assert len(hub.downloads("tokenizer.model")) == downloads
    assert (branch / "model.safetensors").read_bytes() == OTHER["model.safetensors"]
    shared = sum(len(FILES[name]) for name in TAKEN[:3])

    freed = cache.remove(list(branch.iterdir()), "some/model")
    assert freed == 1000 + len(main.name)  # its own weights, and the branch's commit
    assert {p.name: p.read_bytes() for p in main.iterdir()} == {n: FILES[n] for n in TAKEN}
    scan = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE)
    assert not scan.warnings
    (repository,) = scan.repos
    assert [set(revision.refs) for revision in repository.revisions] == [{"main"}]
    assert scan.size_on_disk == len(WEIGHTS) + shared

    assert cache.remove(list(main.iterdir()), "some/model") >= len(WEIGHTS) + shared
    assert not huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert not list((tmp_path / "hub").glob("models--*"))


def test_a_copy_of_a_repository_stays_when_the_other_goes(hub: Hub) -> None:
    hub.repositories["a/copy"] = Repository({"main": FILES})
    path, copy = pull(hub)[0], pull(hub, "a/copy")[0]
    assert path.name == copy.name  # the same commit
    cache.remove(list(path.iterdir()), "some/model")
    assert not path.exists()
    assert (copy / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    "path", ["../evil.gguf", "/evil.gguf", "a/../../evil.gguf", "a\\evil.gguf"]
)
def test_a_listing_cannot_write_elsewhere(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.repositories["an/evil"] = Repository({"main": {path: b"x"}})
    with pytest.raises(ValueError, match="cannot be"):
        pull(hub, "an/evil:*evil.gguf")
    assert not list(tmp_path.rglob("*evil*.gguf"))


def test_no_room_is_said_before_the_download(hub: Hub) -> None:
    hub.claimed_sizes["model.safetensors"] = 10**18
    listing = list_files(parse("some/model"), hub.url)
    with pytest.raises(ValueError, match=r"needs 1000000000\.0 GB more.*HF_HOME"):
        check_space(listing, listing.chosen())


def test_another_server_is_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.hub_server.commit_of", lambda files: "../../elsewhere")
    with pytest.raises(ValueError, match="does not answer as a hub"):
        pull(hub)


def test_licences(tmp_path: Path) -> None:
    llama2 = LICENSES["llama2"]
    text = " ".join([*llama2.terms, llama2.notice])
    for fact in (
        "700 million monthly active", "Acceptable Use Policy", "improve any other large language",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, "
        "Inc. All Rights Reserved.",
    ):  # fmt: skip
        assert fact in text
    assert license_of("meta-llama/Llama-2-70b-chat-hf", "") is llama2
    assert license_of("TheBloke/Llama-2-7B-GGML", "other") is llama2
    assert license_of("someone/tuned", "llama2") is llama2
    assert license_of("someone/tuned", "apache-2.0") is None
    file = tmp_path / "new" / "licenses.json"
    assert not is_accepted(llama2, file)
    accept(llama2, file)
    accept(llama2, file)
    assert is_accepted(llama2, file)
    file.write_text("damaged")
    with pytest.raises(ValueError, match=r"licenses\.json is damaged"):
        is_accepted(llama2, file)
