"""The contamination of a run's samples by a corpus, in files beside its results.

`contamination.json` in the run's folder has the figures (`Contamination`), and
`contamination/TASK.jsonl` a `SampleShares` a line.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from puna.data.shards import ShardSet
from puna.evaluate.contamination.overlap import Overlap
from puna.evaluate.contamination.subsets import LENGTHS, Subset, has_helped, subsets
from puna.evaluate.results import Sample, read_results, read_samples
from puna.formats.files import atomic_file
from puna.tokenizer import Tokenizer

_FILE, _SAMPLES, _STATE = "contamination.json", "contamination", ".contamination.npz"


@dataclass(frozen=True, slots=True)
class AtLength:
    """A task's figures where spans of `length` tokens or more count.

    `share` is the mean of its samples' shares of contaminated tokens; `helped` says whether all
    four subsets speak for it.
    """

    length: int
    share: float
    subsets: tuple[Subset, ...]
    helped: bool


@dataclass(frozen=True, slots=True)
class TaskContamination:
    """A task at each length, by the metric that counts; `questions` are those that have it."""

    task: str
    title: str
    metric: str
    questions: int
    lengths: tuple[AtLength, ...]

    @property
    def shown(self) -> AtLength:
        """The largest length at which contamination has helped, as the paper reports; else the
        least, at which most is contaminated."""
        helped = [each for each in self.lengths if each.helped]
        return helped[-1] if helped else self.lengths[0]


@dataclass(frozen=True, slots=True)
class Contamination:
    """What was compared with what: training text, and the tasks of a run."""

    corpora: tuple[str, ...]
    sources: tuple[str, ...]
    documents: int
    tokens: int
    tasks: tuple[TaskContamination, ...]


@dataclass(frozen=True, slots=True)
class SampleShares:
    """A question: its tokens, and the share of them that is contaminated at each length."""

    id: str
    group: str | None
    tokens: int
    shares: dict[str, float]


def check(
    run: Path,
    corpora: Sequence[ShardSet],
    tokenizer: Tokenizer,
    *,
    on_tokens: Callable[[int], None] = lambda count: None,
) -> Contamination:
    """Scans the shards for the samples of all tasks of `run`, and writes what is found into it.

    A sample is its question and its right answer, as text, which the corpora's tokenizer encodes.
    A scan that was stopped goes on at the shard where it was. ValueError where the run or a sample
    file is damaged. `on_tokens` gets the training tokens that were read.
    """
    results = read_results(run)
    samples = {task.task: list(read_samples(run, task.task)) for task in results.tasks}
    encoded = [tokenizer.encode(verbalized(s)) for each in samples.values() for s in each]
    overlap = Overlap(encoded, (tokenizer.bos_id, tokenizer.eos_id))
    _scan(overlap, corpora, run / _STATE, on_tokens)
    shares = {length: overlap.shares(length) for length in LENGTHS}
    (run / _SAMPLES).mkdir(exist_ok=True)
    tasks, begin = [], 0
    for task in results.tasks:
        own = slice(begin, begin + len(samples[task.task]))
        begin = own.stop
        measured = np.array([task.metric in s.metrics for s in samples[task.task]], bool)
        figures = np.array(
            [s.metrics[task.metric] for s in samples[task.task] if task.metric in s.metrics]
        )
        at_lengths = tuple(
            _at(length, figures, shares[length][own][measured]) for length in LENGTHS
        )
        tasks.append(
            TaskContamination(task.task, task.title, task.metric, len(figures), at_lengths)
        )
        _write_samples(run, task.task, samples[task.task], encoded[own],
                       {length: of_all[own] for length, of_all in shares.items()})  # fmt: skip
    manifests = [shards.manifest for shards in corpora]
    found = Contamination(
        tuple(str(shards.folder) for shards in corpora),
        tuple(dict.fromkeys(source for manifest in manifests for source in manifest.sources)),
        sum(manifest.num_documents for manifest in manifests),
        sum(manifest.num_tokens for manifest in manifests),
        tuple(tasks),
    )
    _write(run / _FILE, json.dumps(dataclasses.asdict(found), indent=1) + "\n")
    (run / _STATE).unlink(missing_ok=True)
    return found


def read_contamination(run: Path) -> Contamination | None:
    """What `check` wrote; None where it was not called. ValueError where it is damaged."""
    path = run / _FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_bytes())
        tasks = tuple(
            TaskContamination(**task | {"lengths": tuple(map(_length, task["lengths"]))})
            for task in values.pop("tasks")
        )
        for name in ("corpora", "sources"):
            values[name] = tuple(values[name])
        return Contamination(**values, tasks=tasks)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; check the contamination again") from None


def verbalized(sample: Sample) -> str:
    """A sample as training text would have it: its question, and the answer behind it."""
    return f"{sample.question} {sample.answer}"


def _scan(
    overlap: Overlap, corpora: Sequence[ShardSet], state: Path, on_tokens: Callable[[int], None]
) -> None:
    """Scans every shard, and notes after each what was found until there."""
    shards = [(folder, shard) for folder in corpora for shard in folder.manifest.shards]
    key = overlap.digest(shard.sha256 for _, shard in shards)
    done = _resumed(overlap, state, key)
    on_tokens(sum(shard.num_tokens for _, shard in shards[:done]))
    for number, (folder, shard) in enumerate(shards[done:], done + 1):
        overlap.scan(folder.tokens(shard), on_tokens)
        with atomic_file(state, overwrite=True) as file:
            np.savez(file, key=np.array(key), done=np.array(number), spans=overlap.spans)


def _resumed(overlap: Overlap, state: Path, key: str) -> int:
    """Takes over what an earlier scan of the same noted; the number of shards that it had read."""
    try:
        with np.load(state) as noted:
            if str(noted["key"]) != key:
                return 0
            overlap.spans[:] = noted["spans"]
            return int(noted["done"])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return 0  # there is none, or it is not whole


def _at(length: int, figures: NDArray[np.float64], shares: NDArray[np.float64]) -> AtLength:
    found = subsets(figures, shares)
    share = float(shares.mean()) if len(shares) else 0.0
    return AtLength(length, share, found, has_helped(found))


def _length(values: dict[str, Any]) -> AtLength:
    return AtLength(**values | {"subsets": tuple(Subset(**s) for s in values["subsets"])})


def _write_samples(
    run: Path,
    task: str,
    samples: Sequence[Sample],
    encoded: Sequence[Sequence[int]],
    shares: dict[int, NDArray[np.float64]],
) -> None:
    lines = []
    for number, (sample, ids) in enumerate(zip(samples, encoded, strict=True)):
        own = {str(length): round(float(each[number]), 6) for length, each in shares.items()}
        found = SampleShares(sample.id, sample.group, len(ids), own)
        lines.append(json.dumps(dataclasses.asdict(found)) + "\n")
    _write(run / _SAMPLES / f"{task}.jsonl", "".join(lines))


def _write(path: Path, text: str) -> None:
    with atomic_file(path, overwrite=True) as file:
        file.write(text.encode())
