"""`puna eval judge`: scripted judges, a real server, a reward model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from puna.commands.eval_judge import judge_command
from puna.evaluate.results import read_results, read_samples
from tests.evaluate.judges import judge
from tests.serve.servers import puna_serve
from tests.train.preferences.reward_models import new_reward_model

DIALOGS = (
    ("1", "facts", ("What is the capital of Peru?", "Where is Peru?")),
    ("2", "facts", ("What is the capital of France?",)),
    ("3", "stories", ("Tell me a story about a dog.",)),
)


def run(command: click.Command, *arguments: Any) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def dialogs(folder: Path) -> Path:
    path = folder / "dialogs.jsonl"
    records = ({"id": i, "category": c, "turns": list(turns)} for i, c, turns in DIALOGS)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def shown(request: dict[str, Any]) -> list[str]:
    """The last answers of A and B."""
    return re.findall(r"\n(.*)\n-{5} \w+ END -{5}", request["messages"][1]["content"])


def lima(request: dict[str, Any]) -> str:
    """Prefers an answer that is of Peru or of Paris."""
    a, b = (bool(re.search("Lima|Peru is in South|Paris", text)) for text in shown(request))
    return f"So [[{'C' if a == b else 'A' if a else 'B'}]]"


def test_a_fair_and_a_biased_judge(tmp_path: Path) -> None:
    prompts = dialogs(tmp_path)
    base = ["--prompts", prompts, "--judge-model", "j", "--max-tokens", 24, "--concurrency", 2]
    out = tmp_path / "fair"
    with judge(lima) as url:
        arguments = [*base, "-m", "cria-chat", "--against", "cria", "--judge", url, "--out", out]
        done = run(judge_command, *arguments, "--json")
        assert done.exit_code == 0, done.output
        again = run(judge_command, *arguments)  # nothing is left to do
        assert again.exit_code == 0, again.output
        other = run(judge_command, *arguments, "--seed", 1)
        assert "evaluation with other settings" in str(other.exception)
    values = json.loads(done.output)
    # The shipped chat model knows them, the base does not; both tell a story.
    assert values["counts"] == {
        "judgements": 8, "unread": 0, "turns": 4, "wins": 3, "ties": 1, "losses": 0,
        "flipped": 0, "first_won": 3, "decided": 6,
    }  # fmt: skip
    (task,) = read_results(out).tasks
    assert task.score.value == (3 + 0.5) / 4 and set(task.groups) == {"facts", "stories"}
    assert "facts            100.0%" in again.output and "3 wins, 1 ties" in again.output
    assert next(s.given for s in read_samples(out, "judge")) == "The capital of Peru is Lima."
    assert (out / "judgements.jsonl").read_text().count("\n") == 8

    # The answers that are kept are what another judge can be given.
    stored = ["--answers", out / "answers/model.jsonl"]
    stored += ["--against-answers", out / "answers/opponent.jsonl"]
    with judge(lambda _: "[[A]]") as url:
        done = run(
            judge_command, *base, *stored, "--judge", url, "--out", tmp_path / "biased", "--json"
        )
    assert done.exit_code == 0, done.output
    counts = json.loads(done.output)["counts"]
    assert (counts["ties"], counts["flipped"], counts["first_won"]) == (4, 4, 8)


def test_ratings_and_a_judge_that_fails(tmp_path: Path) -> None:
    prompts = dialogs(tmp_path)
    replies = {"Peru": "[[9]]", "France": "[[10]]"}
    asked = 0

    def rated(request: dict[str, Any]) -> Any:
        nonlocal asked
        asked += 1
        if asked == 3:
            return 401, '{"error": {"message": "your money is spent"}}', {}
        assert request["key"] == "Bearer secret"
        text = request["messages"][1]["content"]
        return next((reply for word, reply in replies.items() if word in text), "?")

    with judge(rated) as url:
        arguments = ["--prompts", prompts, "-m", "cria-chat", "--judge", url, "--max-tokens", 16]
        arguments += ["--judge-model", "j", "--concurrency", 1, "--out", tmp_path / "out"]
        broken = CliRunner().invoke(
            judge_command, [str(a) for a in arguments], env={"PUNA_JUDGE_KEY": "secret"}
        )
        assert "does not judge: 401: your money is spent" in str(broken.exception)
        done = CliRunner().invoke(
            judge_command, [str(a) for a in arguments], env={"PUNA_JUDGE_KEY": "secret"}
        )
    assert done.exit_code == 0, done.output
    assert asked == 5  # what was judged before is kept
    assert "a mean rating of 9.33 of 10" in done.output
    assert "1 of 4 judgements cannot be read" in done.output
    assert "secret" not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json*"))


def test_a_real_server_whose_verdicts_are_none(tmp_path: Path) -> None:
    """The tiny model cannot judge: what it says is counted as unread, and what it refuses too."""
    arguments = ["--prompts", dialogs(tmp_path), "-m", "cria-chat", "--against", "cria"]
    arguments += ["--judge-model", "cria-chat", "--judge-max-tokens", 8, "--max-tokens", 16]
    with puna_serve("--model", "cria-chat") as server:
        done = run(
            judge_command, *arguments, "--judge", f"{server.url}/v1", "--out", tmp_path / "out"
        )
        unknown = [*arguments, "--judge", f"{server.url}/v1", "--out", tmp_path / "other"]
        unknown[unknown.index("--judge-model") + 1] = "gpt"
        refused = run(judge_command, *unknown)
    assert done.exit_code == 0, done.output
    assert "8 of 8 judgements cannot be read" in done.output and "no figure" in done.output
    assert "does not judge: 404" in str(refused.exception)
    records = [json.loads(r) for r in (tmp_path / "out/judgements.jsonl").read_text().splitlines()]
    assert any("the judge refuses: 400" in r["text"] for r in records)  # two turns are too long
    assert any("judge" not in r["text"] and r["text"] for r in records)


def test_a_reward_model_judges(tmp_path: Path) -> None:
    reward = new_reward_model(tmp_path / "reward")
    arguments = ["--prompts", dialogs(tmp_path), "-m", "cria-chat", "--against", "cria"]
    arguments += ["--judge", reward, "--max-tokens", 16, "--out", tmp_path / "out", "--json"]
    done = run(judge_command, *arguments)
    assert done.exit_code == 0, done.output
    counts = json.loads(done.output)["counts"]
    assert counts["judgements"] == counts["turns"] == 4 and counts["unread"] == 0
    records = [json.loads(r) for r in (tmp_path / "out/judgements.jsonl").read_text().splitlines()]
    for record in records:
        scores = record["scores"]
        assert scores["model"] != scores["opponent"]
        assert record["winner"] == max(scores, key=scores.__getitem__)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-m", "cria", "--against", "cria", "--judge", "cria"], "cria.gguf is no reward model"),
        (
            ["-m", "cria", "--against", "no", "--judge", "http://x", "--judge-model", "j"],
            "no such file or folder: no",
        ),
        (["--judge", "http://x/v1", "--judge-model", "j"], "give --model or --answers"),
        (["-m", "cria", "--judge", "http://x/v1"], "--judge-model names the model"),
        (["-m", "cria", "--judge", "cria"], "a reward model compares"),
        (
            ["-m", "cria", "--against", "cria", "--against-answers", "f", "--judge", "cria"],
            "--against or --against-answers, not both",
        ),
    ],
)
def test_what_cannot_be_judged(tmp_path: Path, arguments: list[str], problem: str) -> None:
    done = run(judge_command, "--prompts", dialogs(tmp_path), "--out", tmp_path / "out", *arguments)
    assert problem in done.output + str(done.exception)
    assert not (tmp_path / "out").exists()
