"""The README is true: its commands run, and its Chinese twin keeps step."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.servers import puna_serve

ROOT = Path(__file__).parents[1]
STORY = "A llama walked over the high grassland. It looked for water, and it found snow instead.\n"


def blocks(name: str) -> list[list[str]]:
    """The lines of each fenced `sh` block, without comments."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines()] for block in found]


def puna(command: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    assert command.startswith("puna ")
    line = f"{sys.executable} -m {command}"
    return subprocess.run(
        line, shell=True, cwd=folder, input=text, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's commands name: a text, dialogs, prompts, comparisons, and
    models under `path/to`."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "story.txt").write_text(STORY * 400)
    asked = [{"role": "user", "content": "What do llamas eat?"}]
    good, bad = ({"role": "assistant", "content": text} for text in ("Grass.", "Stones."))
    for name, record in (
        ("dialogs", {"messages": [*asked, good]}),
        ("prompts", {"messages": asked}),
        ("pairs", {"prompt": asked, "chosen": [good], "rejected": [bad]}),
    ):
        (folder / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    for destination, options in (
        ("Llama-2-7b-chat-hf", "--format hf"),
        ("llama-2-7b-chat.gguf", "--format gguf"),
        ("llama-2-7b", "--format meta"),
    ):
        made = puna(f"puna convert cria path/to/{destination} {options}", folder)
        assert made.returncode == 0, made.stderr
    return folder


def test_every_command_runs(folder: Path) -> None:
    commands = [line for block in blocks("README.md") for line in block]
    commands = [line for line in commands if line.startswith("puna ") and line != "puna serve"]
    assert len(commands) >= 10
    for command in commands:
        done = puna(command, folder, text="Tell me a story.\n")
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout or done.stderr, command


def test_the_server_answers(tmp_path: Path) -> None:
    (block,) = [block for block in blocks("README.md") if block[0] == "puna serve"]
    with puna_serve(log=tmp_path / "log") as server:
        for command in block[1:]:
            assert command.startswith("curl http://127.0.0.1:8000/")
            here = command.replace("http://127.0.0.1:8000", server.url)
            done = subprocess.run(
                f"{here} --silent --fail", shell=True, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, (tmp_path / "log").read_text()
            assert json.loads(done.stdout)["choices"][0]["text"]


def test_the_python_example_runs(folder: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert len(done.stdout) > 100
    assert program in (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")


def test_set_up_commands_are_the_makefiles() -> None:
    first = blocks("README.md")[0]
    assert first == ["make demo", "make check"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^demo:.*\n\t\$\(BIN\)/puna complete$", makefile, flags=re.MULTILINE)
    assert "make check" in (ROOT / ".ci" / "run").read_text()


def test_chinese_twin_keeps_step() -> None:
    ours, twin = "README.md", "README.zh-CN.md"
    assert blocks(ours) == blocks(twin)
    shape = []
    for name in (ours, twin):
        text = (ROOT / name).read_text(encoding="utf-8")
        shape.append(
            {
                "headings": re.findall(r"^#+", text, flags=re.MULTILINE),
                "rows": len(re.findall(r"^\|", text, flags=re.MULTILINE)),
                "links": {link for link in re.findall(r"\]\(([^)]*)\)", text) if link[0] != "R"},
                "tree": re.findall(r"^  (\S+\.py|\S+/)", text, flags=re.MULTILINE),
                "code": set(re.findall(r"`(puna [^`]*)`", text)),
            }
        )
    assert shape[0] == shape[1]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_links_and_paths_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]*)\)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`(puna/[\w/]+(?:\.py|/))`", text):
        assert (ROOT / path).exists(), path
