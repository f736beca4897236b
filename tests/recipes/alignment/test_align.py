"""`puna align` as a stranger runs it: every kind of stage, small, from the shipped base."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from puna.recipes.alignment.tiny import tiny
from puna.train.preferences.reward import RewardConfig
from puna.train.run_config import read_config
from tests.recipes.tasks.sources import write_sources

RECIPE = """
base = "cria"
[data]
sft = ["sft.jsonl"]
prompts = "prompts.jsonl"
held_out = "held_out.jsonl"
preferences = ["helpfulness.jsonl"]
safety = ["safety.jsonl"]
red_team = "red_team.jsonl"
questions = "questions.jsonl"
held_out_questions = "held_out_questions.jsonl"
[[version]]
name = "V1"
stages = [{ kind = "sft", epochs = 1, learning_rate = 1e-3, batch_size = 4 }]
[[version]]
name = "V2"
stages = [
  { kind = "preferences", prompts = 12, samples = 3, max_tokens = 16 },
  { kind = "reward", of = "helpfulness", learning_rate = 3e-4, batch_size = 16, members = 2 },
  { kind = "reward", of = "safety", learning_rate = 3e-4, batch_size = 16 },
  { kind = "gatt", dialogs = 4, turns = 2, max_tokens = 16 },
  { kind = "safety_distillation", max_tokens = 16 },
  { kind = "rejection_sampling", prompts = 8, samples = 2, max_tokens = 64 },
  { kind = "sft", epochs = 1, learning_rate = 1e-3, batch_size = 4 },
  { kind = "obedience", dialogs = 3, turns = 2, max_tokens = 16 },
]
[[version]]
name = "V3"
[[version.stages]]
kind = "ppo"
iterations = 2
iteration_size = 8
batch_size = 4
evaluate_every = 1
held_out = 4
max_tokens = 16
learning_rate = 1e-5
chosen_by = "gold"
"""
MEMBERS = ("run", "run-2")
LINES = 24  # of each file that is learned from


COMMAND = [sys.executable, "-m", "puna", "align"]


def align(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def killed_when_there_is(pattern: str, out: Path, *arguments: str | Path) -> None:
    """Runs until a file of `out` fits, and kills it there."""
    command = [*COMMAND, *map(str, arguments), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not any(path.stat().st_size for path in out.glob(pattern)):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL, f"over before there was a {pattern}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alignment")
    sources, tasks = folder / "sources", folder / "tasks"
    sources.mkdir()
    write_sources(sources)
    tiny(tasks, sources, 0)
    for path in tasks.glob("*.jsonl"):
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:LINES]))
    path = tasks / "recipe.toml"
    path.write_text(RECIPE)
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_stages_of_a_small_alignment(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = align(recipe, "--out", out, "--max-tokens", "16", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert set(told["stages"][-1]) >= {"best_step", "held_out_gold", "held_out_gold_before"}
    members = [read_config(out / "V2" / "reward" / name, RewardConfig) for name in MEMBERS]
    assert members[0].seed != members[1].seed and members[0].start == members[1].start
    names = [(each["version"], each["stage"]) for each in told["stages"]]
    assert names[0] == ("base", "model") and names[-1] == ("V3", "ppo") and len(names) == 11
    assert told["model"].startswith(str(out))
    page = (out / "report.html").read_text()
    assert "is not finished" not in page and "data:image/png" in page and "V3 ppo" in page

    # Again: nothing is left to do, and the same is told.
    again = align(recipe, "--out", out, "--max-tokens", "16", "--json")
    assert again.returncode == 0 and json.loads(again.stdout) == told

    # Killed in the middle of four stages, the same command comes to the same.
    other = tmp_path / "other"
    for stage in ("V1/sft/run/log.jsonl", "V2/reward/run/log.jsonl",
                  "V2/rejection_sampling/samples.jsonl", "V3/ppo/run/log.jsonl"):  # fmt: skip
        killed_when_there_is(stage, other, recipe, "--max-tokens", "16")
    ended = align(recipe, "--out", other, "--max-tokens", "16", "--json")
    assert ended.returncode == 0, ended.stderr
    assert without_times(json.loads(ended.stdout), other) == without_times(told, out)


def without_times(told: dict[str, Any], out: Path) -> Any:
    """What was told, but for how long it took, and where it lies."""
    for each in told["stages"]:
        each.pop("seconds")
    return json.loads(json.dumps(told).replace(str(out), "OUT"))


def test_what_is_asked_is_shown_or_refused_before_anything_begins(tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text('[[version]]\nname = "V1"\nstages = [{ kind = "reward", off = "safety" }]\n')
    ran = align(recipe, "--out", out)
    assert ran.returncode == 2 and "stage reward has no option off" in ran.stderr
    assert "Traceback" not in ran.stderr and not out.exists()
    recipe.write_text('[[version]]\nname = "V1"\nstages = [{ kind = "reward", of = "safety" }]\n')
    ran = align(recipe, "--out", out, "--dry-run")
    assert ran.returncode == 0 and "reward" in ran.stdout and not out.exists()
    ran = align("tiny", "--out", out)
    assert ran.returncode == 2 and "--sources" in ran.stderr
