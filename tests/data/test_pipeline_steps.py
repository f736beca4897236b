"""Single steps of the pipeline, and what they take from where."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.data.ngrams import ngram_hashes
from puna.data.pipeline import executors
from puna.data.pipeline.config import Run, config_from_dict
from puna.data.pipeline.gutenberg import strip_gutenberg
from puna.data.pipeline.kinds import KINDS
from puna.data.pipeline.personal import scrub
from puna.data.pipeline.plan import make_plan
from puna.data.pipeline.steps import STEPS, phases
from puna.data.pipeline.tokenizing import mix_weights
from puna.data.pipeline.word_hashes import WordHashes
from puna.data.pipeline.words import Words
from tests.data.corpus import prose, wrapped

ALL = {"emails": "<E>", "ips": "<I>", "phones": "<P>"}
PERSONAL = [
    ("Write to a.b+c@mail.example.co.uk, please.", "Write to <E>, please."),
    ("a@b is no address, nor is @home, nor 5 @ 3.50 each", None),
    ("[1] (202) 265-2800 and [213] (0) 770-08-2000", "<P> and <P>"),
    ("+49 30 901820 or +1 415 555 2671 or 1-800-555-1212", "<P> or <P> or <P>"),
    ("In 1862-1865, on pages 123-456, 1,234,567 men and $202-265", None),
    ("ISBN 978-3-16-148410-0 and 12345-6789", None),
    ("at 93.184.216.34, not 10.20.30.40 or 3.1.4.1", "at <I>, not 10.20.30.40 or 3.1.4.1"),
    ("2001:4860:4860::8888 at 12:30:45, std::vector, 1.2.3.4.5",
     "<I> at 12:30:45, std::vector, 1.2.3.4.5"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), PERSONAL)
def test_what_is_personal(text: str, expected: str | None) -> None:
    scrubbed, found = scrub(text, ALL)
    assert scrubbed == (expected or text)
    assert found.total() == sum((expected or "").count(sign) for sign in ALL.values())
    assert scrub(scrubbed, ALL)[1].total() == 0


BOOK = wrapped(prose(1)) + "\n\n" + wrapped(prose(2))
AROUND = [
    ("*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X"),
    ("***START OF THIS PROJECT GUTENBERG EBOOK X,\nOR Y***", "End of the Project Gutenberg EBook"),
    ("*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*", "End of The Project "
     "Gutenberg Etext of X"),
    ("***START**THE SMALL PRINT!**FOR PUBLIC DOMAIN EBOOKS**START***\nWhy is this here?\n"
     "*END THE SMALL PRINT! FOR PUBLIC DOMAIN EBOOKS*Ver.02/11/02*END*", "End Project Gutenberg's"),
]  # fmt: skip


@pytest.mark.parametrize(("start", "end"), AROUND)
def test_what_project_gutenberg_puts_around(start: str, end: str) -> None:
    credit = "Produced by A. Person and PG Distributed Proofreaders"
    text = f"Welcome to free etexts.\n\n{start}\n\n{credit}\n\n{BOOK}\n\n{end} of X\n\nBye"
    assert strip_gutenberg(text, True) == f"{prose(1)}\n\n{prose(2)}"
    assert strip_gutenberg(text, False) == BOOK
    assert strip_gutenberg(BOOK, False) == BOOK
    licence = f"\n\n{prose(3, 150)}"  # longer than the book
    assert strip_gutenberg(text + licence, False) == BOOK
    long = f"{start}\n\n{prose(4, 600)}\n\n{end} of X is said here.\n\n{prose(5, 1500)}"
    assert prose(5, 1500) in strip_gutenberg(long, False)  # not in a footer's place


def test_wikitext_becomes_text() -> None:
    raw = (
        " = Lobster = \n \n The lobster ( H. gammarus ) weighs 1 @,@ 000 g , says he . \n"
        " = = Name = = \n It is called \" big \" here . \n = Crab = \n A crab 's claw . \n"
    )  # fmt: skip
    assert list(KINDS["wikitext"].split(raw)) == [
        "",
        "Lobster\nThe lobster (H. gammarus) weighs 1,000 g, says he.\nName\n"
        'It is called "big" here.',
        "Crab\nA crab's claw.",
    ]


def test_words_and_sentences() -> None:
    words = Words()
    assert words.word_tokenize("It's 3.5 km, no?") == ["It's", "3.5", "km,", "no?"]
    text = 'He came. "Did he?" Yes, 3.5 times!  So'
    assert words.sent_tokenize(text) == ["He came.", '"Did he?"', "Yes, 3.5 times!", "So"]
    assert "".join(text[a:b] for a, b in words.span_tokenize(text)) == text
    assert words == Words() and hash(words) == hash(Words())


def test_ngram_hashes_tell_ngrams_apart() -> None:
    hashes = WordHashes()
    words = hashes.of(["a", "b", "c", "a", "B", "c", "b", "a"])
    threes = ngram_hashes(words, 3)
    assert len(threes) == 6
    assert threes[0] == threes[3]  # case does not matter
    assert len(set(threes.tolist())) == 5
    assert len(ngram_hashes(words, 9)) == 0


def test_the_mix() -> None:
    assert mix_weights({"a": 300, "b": 100}, {"a": 1.0, "b": 3.0}) == {"a": 0.5, "b": 0.5}
    assert mix_weights({"a": 0}, {"a": 1.0}) == {"a": 0.0}


def test_phases_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A story.")
    table = {"name": "s", "licence": "MIT", "path": ["a.txt"]}
    on = {"decontaminate": {"evaluation": ["a.txt"]}}
    plan = make_plan(config_from_dict({"source": [table], "steps": on}, tmp_path))
    names = [phase.name for phase in phases(plan, tmp_path)]
    assert len(set(names)) == len(names)
    for step in STEPS:
        assert any(step in name for name in names)
    off = dict.fromkeys(STEPS, False)
    plan = make_plan(config_from_dict({"source": [table], "steps": off}, tmp_path))
    assert [phase.name for phase in phases(plan, tmp_path)] == ["read", "tokenize", "join-shards"]


def test_slurm_gets_every_phase_after_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        "#!/bin/sh\n"
        f"cd {tmp_path}\n"
        'echo "$@" >> calls\n'
        "n=$(wc -l < calls)\n"
        'for script; do :; done; cp "$script" "job$n"\n'
        'echo "Submitted batch job $n"\n'
    )
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:/usr/bin:/bin")
    (tmp_path / "a.txt").write_text("A story.")
    table = {"name": "s", "licence": "MIT", "path": ["a.txt"]}
    plan = make_plan(config_from_dict({"source": [table]}, tmp_path))
    todo = phases(plan, tmp_path / "out")
    run = Run("slurm", 4, {"partition": "cpu", "time": "1:00:00"})
    executors.submit_to_slurm(todo, run, tmp_path / "out")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2 * len(todo)  # datatrove has a job for the statistics of each
    for number, phase in enumerate(todo):
        job = (tmp_path / f"job{2 * number + 1}").read_text()
        assert f"#SBATCH --job-name=puna-{phase.name}" in job
        assert "#SBATCH --partition=cpu" in job
        if number:
            assert f"--dependency=afterok:{2 * number - 1} " in calls[2 * number]


def test_a_task_whose_process_dies_is_an_error(tmp_path: Path) -> None:
    from puna.data.pipeline.steps import Phase
    from tests.data.dying import Dying

    phase = Phase("dying", [Dying()], 2)
    with pytest.raises(ValueError, match="a process was killed, perhaps for lack of memory"):
        executors.run_locally(phase, Run(workers=2), tmp_path)
