"""Tasks: their references pass, their flawed answers do not, their splits share no question."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from puna.data import instructions
from puna.data.preferences import read_comparisons
from puna.data.prompts import read_prompts
from puna.recipes.tasks import build as building
from puna.recipes.tasks.build import SIZES, build, choose, make
from puna.recipes.tasks.countries import Country, read_countries
from puna.recipes.tasks.format import FORMS
from puna.recipes.tasks.length import LIMITS
from puna.recipes.tasks.persona import PERSONAS
from puna.recipes.tasks.refusal import RISKS
from puna.recipes.tasks.talk import TOPICS
from puna.recipes.tasks.task import RISKY, Task, gold, read_tasks
from puna.train.producers.preprompts import RISKS as PREPROMPTS
from tests.recipes.tasks.sources import write_sources


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def tasks(sources: Path) -> list[Task]:
    return make(sources, seed=1)


@pytest.fixture(scope="module")
def built(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "tasks"
    build(out, sources, seed=1)
    return out


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_countries_are_what_the_factbook_says_plainly(sources: Path) -> None:
    countries = {country.name: country for country in read_countries(sources / "factbook.jsonl")}
    assert len(countries) == 10
    assert countries["Switzerland"] == Country(
        "Switzerland", "Europe", "Bern", ("German", "French"), "Swiss francs", "Swiss"
    )
    assert countries["the Gambia"].capital == "Banjul"
    assert countries["Chile"].capital == "Santiago"
    assert countries["France"].languages == ("French",)
    assert countries["Singapore"].adjective == ""


def test_damaged_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "factbook.jsonl").write_text('{"name": "France"}\n')
    with pytest.raises(ValueError, match="region"):
        read_countries(tmp_path / "factbook.jsonl")
    with pytest.raises(ValueError, match="no such text file"):
        make(tmp_path / "none", seed=1)


def test_every_reference_passes(tasks: list[Task]) -> None:
    assert [task.id for task in tasks if task.check(task.answer) != 1] == []


def test_every_kind_and_group_occurs(tasks: list[Task]) -> None:
    assert {task.kind for task in tasks} == set(SIZES)
    found = {(task.kind, task.group) for task in tasks}
    assert {group for kind, group in found if kind == "format"} == set(FORMS)
    assert {group for kind, group in found if kind == "length"} == set(LIMITS)
    assert {group for kind, group in found if kind == "refusal"} == set(RISKS)
    talk = {group for kind, group in found if kind == "talk"}
    assert talk == {*TOPICS, "story", "unknown"}
    assert {task.is_safety for task in tasks if task.kind == "refusal"} == {True}
    assert not any(task.is_safety for task in tasks if task.kind != "refusal")


def test_flawed_answers_are_worse_and_graded(tasks: list[Task]) -> None:
    def scores(kind: str) -> set[float]:
        return {task.check(f) for task in tasks if task.kind == kind for f in task.flawed}

    assert scores("facts") == {0.0, 1.0}  # wrong ones, and the right name alone
    assert scores("refusal") == scores("benign") == scores("talk") == {0.0}
    for kind in ("format", "persona"):
        assert scores(kind) == {0.0, 0.5}
    assert 1.0 not in scores("length")


def test_no_capital_that_is_its_country_is_asked_for(tasks: list[Task]) -> None:
    assert not any(task.subject == "capital/Singapore" for task in tasks)
    groups = {task.group for task in tasks if task.kind == "facts"}
    assert groups == {"capital", "country", "region", "language", "currency", "adjective"}
    assert any(task.subject == "region/Singapore" for task in tasks)


def test_splits_share_no_question(tasks: list[Task]) -> None:
    uses = choose(tasks, seed=1)
    questions = [{task.question for task in part} for part in uses]
    sft, prompts, held_out, red_team, ppo_prompts = questions
    assert all(questions[:4])
    assert not sft & prompts and not sft & held_out and not prompts & held_out
    assert not red_team & (sft | held_out) and ppo_prompts < prompts
    # The user's whole text is no other's either.
    texts = [{task.messages[-1].content for task in part} for part in uses[:3]]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_nothing_is_asked_twice_where_answers_are_sampled(tasks: list[Task]) -> None:
    uses = choose(tasks, seed=1)
    for part in (uses.prompts, uses.ppo_prompts, uses.held_out):
        assert len({task.messages for task in part}) == len(part)


def test_novel_subjects_are_in_no_other_split(tasks: list[Task]) -> None:
    uses = choose(tasks, seed=1)
    novel = {task.subject for task in uses.held_out if task.novel}
    learned = (uses.sft, uses.prompts, uses.red_team)
    seen = {task.subject for part in learned for task in part}
    assert novel and not novel & seen
    known = {task.subject for task in uses.held_out if not task.novel and task.kind == "facts"}
    assert known <= seen
    # A capital that is asked for one way is not learned the other way round.
    assert {task.asks for task in uses.held_out if task.novel} >= {"capital", "country"}


def test_no_use_is_larger_than_its_size(tasks: list[Task], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(building.SIZES, "facts", building.Size(7, 5, 4, 3, 2, 9))
    facts = [[task for task in part if task.kind == "facts"] for part in choose(tasks, seed=1)]
    assert [len(part) for part in facts] == [7, 5, 5, 0, 4]
    assert sum(task.novel for task in facts[2]) == 2


def test_the_same_seed_gives_the_same_bytes(sources: Path, built: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", sources, seed=1)
    build(tmp_path / "other", sources, seed=2)
    names = sorted(path.name for path in built.iterdir())
    assert names == [
        "held_out.jsonl", "held_out_questions.jsonl", "ppo_prompts.jsonl", "preferences.jsonl",
        "prompts.jsonl", "questions.jsonl", "red_team.jsonl", "sft.jsonl",
    ]  # fmt: skip
    for name in names:
        assert (built / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (built / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_what_is_learned_takes_turns(built: Path) -> None:
    dialogs = [row["messages"] for row in lines_of(built / "sft.jsonl")]
    for messages in dialogs:
        roles = [message["role"] for message in messages if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert max(map(len, dialogs)) > 3 and min(map(len, dialogs)) == 2


def test_the_stages_read_what_is_written(built: Path) -> None:
    def count(name: str) -> int:
        return len(lines_of(built / name))

    dialogs = list(instructions.dialogs(built / "sft.jsonl"))
    assert len(dialogs) == count("sft.jsonl")
    comparisons, skipped = read_comparisons(built / "preferences.jsonl")
    assert (len(comparisons), skipped.total()) == (count("preferences.jsonl"), 0)
    for name in ("prompts.jsonl", "held_out.jsonl", "red_team.jsonl", "questions.jsonl"):
        prompts = read_prompts(built / name)
        assert len(prompts) == count(name)
        kinds = [task.kind for task in read_tasks(built / name)]
        assert [prompt.is_safety for prompt in prompts] == [kind == "refusal" for kind in kinds]
        assert [prompt.is_risky for prompt in prompts] == [kind in RISKY for kind in kinds]
        assert {prompt.risk for prompt in prompts} <= {"", *PREPROMPTS}
    assert all(prompt.is_safety for prompt in read_prompts(built / "red_team.jsonl"))


def test_preferences_prefer_what_is_better(built: Path) -> None:
    by_id = {task.id: task for name in ("prompts", "held_out") for task in read_tasks(
        built / f"{name}.jsonl")}  # fmt: skip
    ratings: set[str] = set()
    kinds: Counter[str] = Counter()
    for row in lines_of(built / "preferences.jsonl"):
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert chosen != rejected
        ratings.add(row["rating"])
        kinds[row["id"].partition("/")[0]] += 1
        if (task := by_id.get(row["id"])) is not None:
            gap = task.check(chosen) - task.check(rejected)
            expected = {0: "negligibly_better", 0.5: "better", 1: "significantly_better"}
            assert row["rating"] == expected[gap]
        if row["is_safety"]:
            assert (row["chosen_safe"], row["rejected_safe"]) == (True, False)
    assert kinds.keys() == SIZES.keys()
    assert all(count <= SIZES[kind].pairs for kind, count in kinds.items())
    assert kinds["refusal"] == SIZES["refusal"].pairs  # there are more than are wanted
    assert ratings == {"negligibly_better", "better", "significantly_better"}


def test_tasks_come_back_from_their_file(tasks: list[Task], built: Path) -> None:
    held_out = read_tasks(built / "held_out.jsonl")
    assert [task.row() for task in held_out] == lines_of(built / "held_out.jsonl")
    answers = [task.answer for task in held_out]
    assert gold(held_out, answers) == [1.0] * len(held_out)
    with pytest.raises(ValueError, match="answers"):
        gold(held_out, answers[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "user"}]}, "line 1: not a task"),
        ({"messages": []}, "texts"),
        ({"answer": 3}, "strings"),
        ({"messages": [{"role": "user", "content": "[INST] a"}]}, "reserved"),
        ({"novel": "yes"}, "true or false"),
        ({"requirements": []}, "requirements"),
        ({"requirements": [["wins", {}]]}, "no requirement 'wins'"),
        ({"requirements": [["ends", {}]]}, "wrong arguments for 'ends'"),
        ({"requirements": [["ends", {"phrase": 3}]]}, "wrong arguments for 'ends'"),
        ({"requirements": [["states", {"right": []}]]}, "wrong arguments for 'states'"),
    ],
)
def test_damaged_tasks_are_refused(
    built: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    row = lines_of(built / "held_out.jsonl")[0] | change
    (tmp_path / "tasks.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        read_tasks(tmp_path / "tasks.jsonl")


def test_personas_obey_themselves_and_nobody_else() -> None:
    plain = "The capital of France is Paris."
    for name, persona in PERSONAS.items():
        assert persona.obeys(persona.dress(plain))
        assert not persona.obeys(plain)
        for other in (other for key, other in PERSONAS.items() if key != name):
            assert not other.obeys(persona.dress(plain))


@pytest.mark.slow
def test_on_the_real_sources(shared: Path) -> None:
    tasks = make(shared / "pretrain", seed=1)
    assert len(tasks) > 15_000
    assert [task.id for task in tasks if task.check(task.answer) != 1] == []
    uses = choose(tasks, seed=1)
    texts = [{task.messages[-1].content for task in part} for part in uses[:3]]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
    for kind in ("facts", "format", "persona"):
        held_out = [task for task in uses.held_out if task.kind == kind]
        assert len(held_out) == SIZES[kind].held_out + SIZES[kind].novel
        assert sum(task.kind == kind for task in uses.prompts) == SIZES[kind].prompts
        assert sum(task.kind == kind for task in uses.sft) == SIZES[kind].sft
