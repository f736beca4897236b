"""The command line as its users meet it: help, errors, exit codes, output."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna import cli
from puna.commands.cache import cache_folder
from puna.commands.models import resolve
from puna.engine.cpu.tile_cache import TileCache
from puna.formats import open_checkpoint
from tests.formats.test_lora import MATRICES, make_pairs, write_peft

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `puna ARGS` in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["puna", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def cria() -> Path:
    return resolve("cria").path


def is_one_clear_line(code: int, out: str, err: str, *words: str) -> bool:
    lines = err.strip().splitlines()
    return (
        code == 2
        and out == ""
        and len(lines) == 1
        and lines[0].startswith("puna: error: ")
        and all(word in lines[0] for word in words)
    )


def test_help_lists_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name, entry in cli.COMMANDS.items():
        assert name in out
        assert entry.help in out


def test_a_model_is_kept_where_the_commands_say(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path))
    monkeypatch.setitem(TileCache.__init__.__kwdefaults__, "least", 0)
    assert run("convert", "cria", tmp_path / "m.gguf", "--dtype", "q8_0")[0] == 0
    assert run("complete", "--model", tmp_path / "m.gguf", "--max-tokens", "2")[0] == 0
    assert len(list(tmp_path.glob("*.tiles"))) == 1


def test_the_cache_is_shown_moved_and_switched_off(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PUNA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "puna"
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "moved"))
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "0123.tiles").write_bytes(b"not one" * 1000)
    code, out, _ = run("cache")
    assert code == 0 and "(damaged)" in out and str(tmp_path / "moved") in out
    code, out, _ = run("cache", "--json")
    assert [Path(file["path"]).name for file in json.loads(out)["files"]] == ["0123.tiles"]
    assert run("cache", "--clear")[0] == 0
    assert not list((tmp_path / "moved").iterdir())
    monkeypatch.setenv("PUNA_CACHE", "off")
    assert cache_folder() is None
    assert is_one_clear_line(*run("cache"), "PUNA_CACHE")


@pytest.mark.parametrize("group", [(), ("tokenizer",)])
def test_nothing_asked_is_help(run: Run, group: tuple[str, ...]) -> None:
    code, out, err = run(*group)
    assert (code, err) == (0, "")
    assert out == run(*group, "--help")[1]


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_each_command_has_help(run: Run, command: str) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "Usage: " in out


def test_help_imports_neither_torch_nor_a_command() -> None:
    code = (
        "import sys, puna.cli\n"
        "try: puna.cli.puna.main(['--help'], standalone_mode=False)\n"
        "finally: print([m for m in sys.modules if m == 'torch' or m.startswith('puna.commands')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("['puna.commands', 'puna.commands.lazy']")


def test_info_and_convert_import_no_torch(tmp_path: Path) -> None:
    for arguments in (["info", "cria"], ["convert", "cria", str(tmp_path / "x"), "--format", "hf"]):
        code = (
            f"import sys, puna.cli\npuna.cli.puna.main({arguments!r}, standalone_mode=False)\n"
            "assert 'torch' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_complete_is_deterministic_and_streams_what_json_says(run: Run) -> None:
    arguments = ("complete", "--prompt", "Once upon a time", "--seed", "3", "--max-tokens", "20")
    code, plain, _ = run(*arguments)
    assert code == 0
    code, as_json, _ = run(*arguments, "--json")
    result = json.loads(as_json)
    assert plain == f"Once upon a time{result['text']}\n"
    assert result["completion_tokens"] <= 20
    assert result["finish_reason"] in ("stop", "length")


def test_stop_string_ends_the_text_before_it(run: Run) -> None:
    base = ("complete", "--temperature", "0", "--max-tokens", "60", "--json")
    whole = json.loads(run(*base)[1])["text"]
    stop = whole[30:33]
    cut = json.loads(run(*base, "--stop", stop)[1])
    assert cut["text"] == whole[: whole.index(stop)]
    assert cut["finish_reason"] == "stop"


def test_info_of_released_models(run: Run) -> None:
    code, out, _ = run("info", "llama-2-70b-chat")
    assert code == 0
    for fact in (
        "2023-07-18", "September 2022", "July 2023", "68,976,648,192", "1,720,320", "2T",
        "700 million", "meta-llama/Llama-2-70b-chat-hf", "TheBloke/Llama-2-70B-Chat-GGML",
        "TheBloke/Llama-2-70B-Chat-GPTQ", "291.42",
    ):  # fmt: skip
        assert fact in " ".join(out.split()), fact


@pytest.mark.parametrize(
    ("old", "present"),
    [
        ("llamaste/Llama-2-7b-hf", "meta-llama/Llama-2-7b-hf"),
        ("llamaste/Llama-2-13b-chat-hf", "meta-llama/Llama-2-13b-chat-hf"),
    ],
)
def test_old_repository_names_resolve(run: Run, old: str, present: str) -> None:
    code, out, _ = run("info", old, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["present_name"] == facts["repository"] == present


def test_info_of_a_file(run: Run, cria: Path) -> None:
    code, out, _ = run("info", cria, "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["format"] == "gguf"
    assert facts["parameters"] == 6_163_712
    assert facts["tokenizer"] == facts["vocabulary"] == 4096


def test_bad_arguments(run: Run, tmp_path: Path, cria: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A llama.\n" * 50)
    bad = tmp_path / "latin1.txt"
    bad.write_bytes(b"fine\ncaf\xe9\n")
    cases: list[tuple[tuple[str | Path, ...], tuple[str, ...]]] = [
        (("complete", "--model", "no/such.gguf"), ("no such file", "no/such.gguf")),
        (("complete", "--model", "llama-2-7b-chat"), ("not on this machine", "meta-llama/")),
        (("complete", "--prompt", "llama " * 600), ("tokens", "512")),
        (("complete", "--temperature", "-1"), ("temperature",)),
        (("complete", "--top-p", "0"), ("top_p",)),
        (("complete", "--stop", ""), ("stop",)),
        (("complete", "--device", "nonsense"), ("nonsense",)),
        (("complete", "--nonsense"), ("--nonsense", "--help")),
        (("nonsense",), ("nonsense",)),
        (("info", tmp_path / "none"), ("no such file",)),
        (("info", text), ("text.txt",)),
        (("chat", "--system", "[INST] hi"), ("[INST]", "reserved")),
        (("convert", cria, cria, "--format", "gguf", "--overwrite"), ("source",)),
        (("convert", cria, text, "--format", "gguf"), ("exists",)),
        (("convert", cria, tmp_path / "x", "--format", "nonsense"), ("nonsense",)),
        (("convert", cria, tmp_path / "x", "--format", "hf", "--dtype", "q9"), ("q9", "q4_k_m")),
        (("convert", cria, tmp_path / "x"), ("--format",)),
        (("convert", cria, tmp_path / "x.gguf", "--bits", "4"), ("gguf", "bits")),
        (("quantize", cria, tmp_path / "x.gguf", "--to", "f16"), ("puna convert --dtype f16",)),
        (("quantize", cria, tmp_path / "x", "--to", "gptq-4bit-128g"), ("--calibration",)),
        (("perplexity", cria, "--text", text, "--context", "4096"), ("4096", "512")),
        (("pretrain", "--out", tmp_path / "r"), ("no texts",)),
        (("pretrain", bad, "--out", tmp_path / "r"), ("latin1.txt", "line 2", "UTF-8")),
        (("pretrain", text, "--out", tmp_path / "r", "--model", "8b"), ("8b", "7b")),
        (("pretrain", text, "--out", tmp_path / "r"), ("windows",)),
        (("pretrain", text, "--out", tmp_path / "r", "--mix", "books"), ("books=0.3,web=0.7",)),
        (("pretrain", text, "--out", tmp_path / "r", "--mix", "a=1"), ("no such source as a",)),
        (("pretrain", tmp_path, "--out", tmp_path / "r"), ("holds no shards",)),
        (("pretrain", "--out", tmp_path / "r", "--resume"), ("not a run",)),
        (
            ("pretrain", "--out", tmp_path / "r", "--resume", "--steps", "9"),
            ("own config", "steps"),
        ),
        (("tokenizer", "train", text, "--out", text), ("exists",)),
        (("tokenizer", "train", text, "--out", tmp_path / "t", "--vocab-size", "9"), ("300",)),
    ]
    before = sorted(tmp_path.iterdir())
    for arguments, words in cases:
        code, out, err = run(*arguments)
        assert is_one_clear_line(code, out, err, *words), (arguments, code, out, err)
    assert sorted(tmp_path.iterdir()) == before
    assert text.read_text() == "A llama.\n" * 50


def test_wrong_tokenizer_for_the_weights(run: Run, tmp_path: Path, cria: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A llama walks over the grassland, far from home.\n" * 50)
    other = tmp_path / "other.model"
    assert run("tokenizer", "train", text, "--vocab-size", "300", "--out", other)[0] == 0
    result = run("complete", "--model", cria, "--tokenizer", other)
    assert is_one_clear_line(*result, "300", "4096", "do not belong together")


@pytest.mark.parametrize("keep", [0, 3, 10, 5_000, 100_000])
def test_truncated_model(run: Run, tmp_path: Path, cria: Path, keep: int) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(cria.read_bytes()[:keep])
    assert is_one_clear_line(*run("complete", "--model", broken), "broken.gguf")


def test_interrupted_conversion_leaves_nothing(
    run: Run, tmp_path: Path, cria: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("puna.formats.checkpoint.convert", interrupt)
    for format_name in ("hf", "gguf", "meta"):
        target = tmp_path / "new"
        code, _, _ = run("convert", cria, target, "--format", format_name, "--dtype", "bf16")
        assert code == 130
        assert list(tmp_path.iterdir()) == []


def test_slow_quantizing_without_native_code_is_said(
    run: Run, tmp_path: Path, cria: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.kernels.native.library", lambda: None)
    _, _, err = run("convert", cria, tmp_path / "a.gguf", "--dtype", "q8_0")
    assert err.count("native code is not compiled") == 1
    _, _, err = run("convert", cria, tmp_path / "b.gguf", "--dtype", "bf16")
    assert "native code" not in err
    monkeypatch.undo()
    _, _, err = run("convert", cria, tmp_path / "c.gguf", "--dtype", "q8_0")
    assert "native code" not in err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "c.gguf").read_bytes()


def test_missing_torch_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("puna.engine.torch_runner", "puna.formats.network"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert is_one_clear_line(*run("complete", "--device", "cuda"), "torch", "puna[train]")


def test_without_native_code_torch_answers_or_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ("complete", "--temperature", "0", "--max-tokens", "8", "--dtype", "fp32")
    _, native_text, native_err = run(*arguments)
    assert native_err == ""
    monkeypatch.setattr("puna.kernels.native.library", lambda: None)
    code, text, _ = run(*arguments)
    assert (code, text) == (0, native_text)
    assert "native code was not built" in caplog.text
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert is_one_clear_line(*run(*arguments), "C++ compiler", "puna[train]")


def test_lora_means_the_same_everywhere(
    run: Run, tmp_path: Path, cria: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(cria)
    paths = []
    for number, names in enumerate((MATRICES[:7], MATRICES[7:])):
        pairs = {
            name: (a * np.float32(0.06), b * np.float32(0.06))
            for name, (a, b) in make_pairs(checkpoint, names, rank=3 + number).items()
        }
        paths.append(write_peft(tmp_path / f"{number}", pairs, lora_alpha=20))
    loras = ("--lora", paths[0], "--lora", f"{paths[1]}:0.5")
    merged = tmp_path / "merged.gguf"
    assert run("convert", cria, merged, "--dtype", "f32", *loras)[0] == 0
    greedy = ("--temperature", "0", "--max-tokens", "12", "--dtype", "fp32")
    _, expected, _ = run("complete", "--model", merged, *greedy)
    _, plain, _ = run("complete", *greedy)
    assert run("complete", *greedy, *loras) == (0, expected, "") and expected != plain
    _, out, _ = run("complete", *greedy, *loras, "--json", "--prompt", "Once upon a time")
    assert expected == f"Once upon a time{json.loads(out)['text']}\n"

    def say(*arguments: str | Path) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("Tell me a story."))
        code, out, err = run("chat", *greedy, *arguments)
        assert (code, err) == (0, "")
        return out

    own = ("--model", cria)
    assert say("--model", merged) == say(*own, *loras) != say(*own)
    for wrong, words in (
        ("nothing", ("no such file", "nothing")),
        (f"{paths[0]}:nan", ("added nan times",)),
        (cria, ("general.type", "adapter")),
    ):
        assert is_one_clear_line(*run("complete", "--lora", wrong), *words)
        assert is_one_clear_line(
            *run("convert", cria, tmp_path / "x.gguf", "--lora", wrong), *words
        )


def test_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m puna list | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
