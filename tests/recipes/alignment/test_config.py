"""Alignments as TOML: what is read, and what is said of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.recipes.alignment.config import Stage, read_align_config
from puna.recipes.alignment.loop import check
from puna.recipes.alignment.stages import STAGES

GOOD = """
base = "cria"
seed = 3
max_tokens = 16
[data]
sft = ["a.jsonl"]
prompts = "b.jsonl"
[[version]]
name = "V1"
stages = [{ kind = "sft", epochs = 3 }, { kind = "obedience" }, { kind = "sft" }]
"""


def read(folder: Path, text: str) -> None:
    path = folder / "recipe.toml"
    path.write_text(text)
    check(read_align_config(path), STAGES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("{}\n")
    return tmp_path


def test_a_recipe_is_read_with_paths_beside_it(folder: Path) -> None:
    read(folder, GOOD)
    config = read_align_config(folder / "recipe.toml")
    assert (config.base, config.seed, config.max_tokens) == ("cria", 3, 16)
    assert config.data.sft == (folder / "a.jsonl",) and config.data.prompts == folder / "b.jsonl"
    (version,) = config.versions
    assert [name for name, _ in version.folders()] == ["sft", "obedience", "sft-2"]
    assert version.stages[0] == Stage("sft", {"epochs": 3})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('base = "cria"', "base = cria", "is not TOML"),
        ("seed = 3", "sead = 3", "the file has no sead"),
        ("seed = 3", 'seed = "three"', "seed a whole number"),
        ("max_tokens = 16", "max_tokens = true", "as is max_tokens"),
        ("max_tokens = 16", "max_tokens = 0", "max_tokens must be positive, not 0"),
        ('"a.jsonl"', '"c.jsonl"', "there is no file .*c.jsonl"),
        ('sft = ["a.jsonl"]', "sft = 3", "sft is paths"),
        ("sft = [", "sfd = [", r"\[data\] has no sfd"),
        ('name = "V1"', 'name = "V/1"', "letters, digits"),
        ('name = "V1"', 'name = "base"', "no version can be named base"),
        ('kind = "obedience"', 'kind = "ppo", chosen_by = "me"', "chosen by reward or gold, not"),
        (
            'kind = "obedience"',
            'kind = "ppo", chosen_by = "gold", held_out = 0',
            "held_out must be positive",
        ),
        ('kind = "obedience"', 'kind = "obey"', "no stage 'obey'; there are sft, "),
        ("epochs = 3", "epoch = 3", "stage sft has no option epoch; it has "),
        ("epochs = 3", 'epochs = "3"', "stage sft: epochs is a number, not '3'"),
        ("epochs = 3", "batch_size = 2.5", "stage sft: batch_size is a whole number, not 2.5"),
        ("epochs = 3", "batch_size = 0", "stage sft: batch_size must be positive, not 0"),
        ("epochs = 3", "epochs = nan", "stage sft: epochs must be positive, not nan"),
        ('kind = "sft", epochs', "epochs", "a stage is a table with its kind"),
        ("[[version]]", "[[versions]]", "the file has no versions"),
        ('prompts = "b.jsonl"', "", "obedience needs data that is not declared: prompts"),
    ],
)
def test_what_is_wrong_is_said_before_anything_begins(
    folder: Path, old: str, new: str, said: str
) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=said):
        read(folder, GOOD.replace(old, new))


def test_two_versions_of_one_name(folder: Path) -> None:
    version = '[[version]]\nname = "V1"\nstages = [{ kind = "sft" }]\n'
    with pytest.raises(ValueError, match="two versions have one name"):
        read(folder, GOOD + version)
