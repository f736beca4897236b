"""`puna pull`, `list`, `rm` and hub names for `--model`, as users meet them: real programs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pexpect
import pytest

from puna import cli
from puna.formats import save_checkpoint
from tests.formats.conftest import make_checkpoint
from tests.formats.test_lora import make_pairs, write_peft
from tests.hub_server import TOKEN, Hub, Repository, serve, use

BRANCH = "gptq-4bit-32g-actorder_True"
GGUF = "Some/Tiny-GGUF"
NOWHERE = "http://127.0.0.1:9"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny models: a Hugging Face folder `hf`, and `1.gguf`, `2.gguf`."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(make_checkpoint(), folder / "hf", "hf")
    for seed in (1, 2):
        save_checkpoint(make_checkpoint(seed=seed), folder / f"{seed}.gguf", "gguf")
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in (model / "hf").iterdir()}
    ggufs = {
        f"t.{name}.gguf": (model / f"{seed}.gguf").read_bytes()
        for seed, name in ((1, "Q4_K_M"), (2, "Q8_0"))
    }
    llama2 = Repository({"main": files}, license="llama2")
    with serve(
        some__tiny=Repository({"main": files, BRANCH: {**files, "README.md": b"branch"}}),
        a__gated=Repository({"main": files}, gated=True),
        a__tuned=llama2,
        Some__repository=Repository({"main": {"model.onnx": b""}}),
    ) as hub:
        hub.repositories["meta-llama/Llama-2-7b-hf"] = llama2
        hub.repositories[GGUF] = Repository({"main": {"README.md": b"", **ggufs}})
        yield hub


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """A user who has never pulled anything, and whose hub is on the loopback."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return ours | {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.fixture
def program(environment: dict[str, str], tmp_path: Path) -> Run:
    """Runs `puna ARGS` as a program: (exit code, stdout, stderr); keywords are environment."""

    def call(*arguments: str | Path, text: str = "", **changes: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "puna", *map(str, arguments)],
            env=environment | changes, cwd=tmp_path, input=text, capture_output=True, text=True,
            timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    return call


@pytest.fixture
def run(
    hub: Hub,
    environment: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """The same in this process, for the same user; `url` is another hub."""

    def call(*arguments: str | Path, text: str = "", url: str = hub.url) -> tuple[int, str, str]:
        use(monkeypatch, url, Path(environment["HF_HOME"]))
        monkeypatch.setattr(sys, "argv", ["puna", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.chdir(tmp_path)
    yield call
    huggingface_hub.close_session()


def refused(result: tuple[int, str, str], *words: str) -> bool:
    code, out, err = result
    one_line = len(err.splitlines()) == 1 and err.startswith("puna: error: ")
    return (code, out) == (2, "") and one_line and all(word in err for word in words)


def content(hub: Hub) -> list[str]:
    """What was asked of files' content, not of lists."""
    return [path for method, path, _ in hub.requests if "/api/" not in path]


def test_pull_and_use(program: Run, run: Run, hub: Hub, model: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "8")
    code, out, _ = run("pull", "some/tiny", "--dry-run")
    assert code == 0
    assert "model.safetensors       413.0 kB" in out
    assert content(hub) == []

    code, out, err = program("pull", "some/tiny")
    assert (code, out) == (0, "")
    assert err.startswith("some/tiny is in ")
    result = json.loads(run("pull", "some/tiny", "--json")[1])
    assert (result["repository"], result["revision"]) == ("some/tiny", "main")
    assert result["downloaded_bytes"] == 0
    assert Path(result["path"]).is_dir()

    # From here on, no network.
    code, out, err = program("complete", "--model", "some/tiny", *options, HF_ENDPOINT=NOWHERE)
    assert (code, err) == (0, "")
    assert out == run("complete", "--model", model / "hf", *options)[1]
    code, out, _ = run("chat", "some/tiny", *options, text="hello\n", url=NOWHERE)
    assert code == 0
    assert out == run("chat", "--model", model / "hf", *options, text="hello\n")[1]
    facts = json.loads(run("info", "some/tiny", "--json", url=NOWHERE)[1])
    assert facts["format"] == "huggingface"
    assert run("convert", "some/tiny", "new.gguf", "--format", "gguf", url=NOWHERE)[0] == 0
    assert refused(run("chat", "some/tiny", "--model", "cria"), "twice")


def test_commands_pull_what_they_need_and_info_does_not(run: Run, hub: Hub) -> None:
    assert refused(run("info", "some/tiny"), "not on this machine", "puna pull some/tiny")
    assert hub.requests == []
    code, out, err = run("complete", "--model", f"{GGUF}:t.Q8_0.gguf", "--max-tokens", "3")
    assert code == 0
    assert out.startswith("Once upon a time")
    assert err == f"{GGUF}:t.Q8_0.gguf is not on this machine: downloading 420.1 kB\n"
    assert not any(path.endswith("Q4_K_M.gguf") for path in content(hub))


def test_adapters_are_pulled_too(run: Run, hub: Hub, model: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "lora", make_pairs(make_checkpoint()))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["some/lora"] = Repository({"main": files})
    options = ("--temperature", "0", "--max-tokens", "8", "--model", model / "hf")
    expected = run("complete", *options, "--lora", f"{folder}:0.5")[1]
    assert expected != run("complete", *options)[1]
    code, out, err = run("complete", *options, "--lora", "some/lora:0.5")
    assert (code, out) == (0, expected) and "some/lora is not on this machine: downloading" in err
    assert run("complete", *options, "--lora", "some/lora:0.5", url=NOWHERE) == (0, expected, "")
    assert refused(run("complete", *options, "--lora", "some/lora:x"), "some/lora has no file 'x'")


def test_one_file_of_several(run: Run, hub: Hub) -> None:
    listed = ("t.Q4_K_M.gguf (420.1 kB)", "t.Q8_0.gguf (420.1 kB)", f"{GGUF}:t.Q4_K_M.gguf")
    assert refused(run("pull", GGUF), *listed)
    assert refused(run("chat", GGUF), *listed)
    assert refused(run("pull", f"{GGUF}:*Q5*"), "'*Q5*'", "t.Q4_K_M.gguf")
    assert refused(run("pull", "Some/repository"), "no weights")
    assert content(hub) == []
    code, _, err = run("pull", f"{GGUF}:*Q4_K_M*")
    assert code == 0
    assert "/t.Q4_K_M.gguf (420.1 kB, 420.1 kB downloaded)" in err
    assert json.loads(run("info", GGUF, "--json")[1])["format"] == "gguf"  # the only one here
    assert run("pull", f"{GGUF}:*")[0] == 0
    assert refused(run("info", GGUF), "holds 2 models", "name one")


def test_revisions(run: Run) -> None:
    assert refused(run("pull", "some/tiny@nope"), "'nope'", f"it has main, {BRANCH}")
    code, _, err = run("pull", f"some/tiny@{BRANCH}")
    assert code == 0
    assert f"some/tiny@{BRANCH} is in" in err
    assert refused(run("info", "some/tiny"), "not on this machine")
    assert run("info", f"some/tiny@{BRANCH}")[0] == 0


def test_access(
    program: Run, run: Run, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("pull", "a/gated", "--dry-run")[0] == 0
    assert refused(run("pull", "a/gated"), "gated", f"{hub.url}/a/gated", "HF_TOKEN")
    assert refused(program("pull", "a/gated", HF_TOKEN="hf_other"), "your token has no access")
    assert refused(run("pull", "no/such"), "no/such is not on", "private")
    assert refused(run("chat", "no/such"), "no file or folder no/such", "is not on")
    assert refused(run("chat", "no/such/path"), "no such file or folder: no/such/path")
    assert refused(program("pull", "some/tiny", HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
    assert refused(run("pull", "some/tiny", "--endpoint", NOWHERE), "cannot be reached")
    assert refused(run("pull", "some/tiny", "--endpoint", "huggingface.co"), "https://")
    assert not list((tmp_path / "hf/hub").glob("models--*"))
    assert program("pull", "a/gated", HF_TOKEN=TOKEN)[0] == 0
    code, _, err = program("pull", "some/tiny", "--endpoint", hub.url, HF_ENDPOINT=NOWHERE)
    assert (code, "some/tiny is in" in err) == (0, True)


def terminal(environment: dict[str, str], folder: Path, *arguments: str) -> pexpect.spawn:
    return pexpect.spawn(
        sys.executable, ["-m", "puna", *arguments], env=environment, cwd=folder, encoding="utf-8",
        timeout=60, dimensions=(40, 100),
    )  # fmt: skip


def test_llama_2_comes_after_its_terms(
    run: Run, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    for arguments in (("pull", "llama-2-7b"), ("complete", "--model", "a/tuned")):
        assert refused(run(*arguments), "LLAMA 2 Community License", "--accept-license")
    for answer in ("n", "y"):
        assert content(hub) == []
        asking = terminal(environment, tmp_path, "pull", "llama-2-7b")
        asking.expect_exact("LLAMA 2 Community License Agreement")
        asking.expect_exact("700 million")
        asking.expect_exact("Acceptable Use Policy")
        asking.expect(r"improve\s+any\s+other\s+large\s+language")
        asking.expect(r"Copyright\s+\(c\)\s+Meta\s+Platforms")
        asking.expect_exact("Do you accept it?")
        asking.sendline(answer)
        asking.expect_exact("nothing was downloaded" if answer == "n" else "Downloading")
        asking.expect(pexpect.EOF)
        asking.close()
        assert asking.exitstatus == (2 if answer == "n" else 0)
    assert run("pull", "a/tuned")[0] == 0  # the same licence: not asked again
    assert run("complete", "--model", "Llama-2-7B", "--max-tokens", "3")[0] == 0


def test_accepting_in_a_script_is_remembered(run: Run) -> None:
    assert run("pull", "a/tuned", "--accept-license")[0] == 0
    assert run("pull", "meta-llama/Llama-2-7b-hf")[0] == 0


def test_ctrl_c_keeps_what_came(
    run: Run, hub: Hub, environment: dict[str, str], tmp_path: Path
) -> None:
    hub.stall = True
    process = subprocess.Popen(
        [sys.executable, "-m", "puna", "pull", "some/tiny"],
        env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size > 50_000 for p in tmp_path.rglob("*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what came is kept" in err
    assert "Traceback" not in err
    hub.stall = False
    assert "some/tiny: stopped at" in run("list")[1]
    before = len(hub.downloads("model.safetensors"))
    assert run("pull", "some/tiny")[0] == 0
    (again,) = hub.downloads("model.safetensors")[before:]
    assert int(again.removeprefix("bytes=").rstrip("-")) >= 50_000
    assert "stopped at" not in run("list")[1]


def test_list_and_rm(run: Run, environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("some/tiny", f"some/tiny@{BRANCH}", f"{GGUF}:t.Q8_0.gguf"):
        assert run("pull", name)[0] == 0
    (tmp_path / "hf/hub/models--bert--base/snapshots" / ("0" * 40)).mkdir(parents=True)
    code, out, _ = run("list")
    assert code == 0
    here, known = out.split("Known")
    assert [line.split()[0] for line in here.splitlines()[2:-1]] == [
        "cria", "cria-chat", f"{GGUF}:t.Q8_0.gguf", f"some/tiny@{BRANCH}", "some/tiny"
    ]  # fmt: skip
    assert "meta-llama/Llama-2-70b-chat-hf" in known
    rows = {row["name"]: row for row in json.loads(run("list", "--json")[1])}
    assert rows["some/tiny"]["format"] == "huggingface"
    assert Path(rows["some/tiny"]["path"]).is_dir()

    assert refused(run("rm", "cria"), "ships")
    assert refused(run("rm", "no/such"), "not on this machine")
    assert refused(run("rm", "some/tiny@nope"), "nope", BRANCH)
    assert refused(run("rm", f"{GGUF}:x.gguf"), "x.gguf", "t.Q8_0.gguf")
    assert refused(run("rm", "some/tiny"), "--yes", "some/tiny")
    asking = terminal(environment, tmp_path, "rm", f"{GGUF}:t.Q8_0.gguf")
    asking.expect_exact("(420.1 kB)?")
    asking.sendline("y")
    asking.expect_exact("420.2 kB freed")
    asking.expect(pexpect.EOF)
    asking.close()
    assert asking.exitstatus == 0
    freed = json.loads(run("rm", f"some/tiny@{BRANCH}", "--yes", "--json")[1])["freed_bytes"]
    assert freed < 1000  # the weights are main's too
    assert run("info", "some/tiny")[0] == 0
    freed = json.loads(run("rm", "some/tiny", "--yes", "--json")[1])["freed_bytes"]
    assert freed > 413_000
    assert "some/tiny" not in run("list")[1]
    assert not list((tmp_path / "hf/hub").glob("models--[sS]ome*"))


def test_a_model_in_a_file_needs_no_hub(model: Path) -> None:
    code = (
        "import sys, puna.cli\n"
        f"puna.cli.puna.main(['info', {str(model / '1.gguf')!r}], standalone_mode=False)\n"
        "assert 'huggingface_hub' not in sys.modules and 'puna.commands.pull' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
