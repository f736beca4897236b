"""Win rates and ratings out of judgements, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from puna.evaluate.judging.judgements import Turn
from puna.evaluate.results import Sample, Score, TaskResult
from puna.evaluate.wilson import wilson
from puna.formats.resumable import Record

RESAMPLES = 2000  # of the bootstrap; ours
_POINTS = {"model": 1.0, "tie": 0.5, "opponent": 0.0}
_BEST_RATING = 10
_MOST_DEVIATION = 0.5  # of what lies between 0 and 1


@dataclass(frozen=True, slots=True)
class Interval:
    """Of 95 %: `wilson` as if turns were independent (None of a rating, which is no share), and
    `bootstrap` over whole dialogs, whose turns belong together (None of a single one)."""

    wilson: tuple[float, float] | None
    bootstrap: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What judgements come to. `intervals` are of the figure that counts, by category and "all";
    `counts` say how many judgements and turns went how."""

    result: TaskResult
    samples: list[Sample]
    intervals: dict[str, Interval]
    counts: dict[str, int]


def compared(
    turns: Sequence[Turn], judgements: Sequence[Record], *, title: str, seed: int = 0
) -> Outcome:
    """The win rate: wins and half of the ties, of the turns whose judgements can be read.

    A turn has one judgement or one in each order; what does not win both is a tie.
    """
    winners: dict[str, list[str | None]] = {turn.id: [] for turn in turns}
    for record in judgements:
        winners[record["id"]].append(record["winner"])
    outcomes = {
        name: str(each[0]) if len(set(each)) == 1 else "tie"
        for name, each in winners.items()
        if None not in each
    }
    read = [record for record in judgements if record["winner"] is not None]
    counts = {
        "judgements": len(judgements),
        "unread": len(judgements) - len(read),
        "turns": len(turns),
        "wins": _count(outcomes, "model"),
        "ties": _count(outcomes, "tie"),
        "losses": _count(outcomes, "opponent"),
    }
    notes = [
        f"{counts['wins']} wins, {counts['ties']} ties and {counts['losses']} losses in "
        f"{len(outcomes)} turns"
    ]
    if "first" in judgements[0]:
        decided = [record for record in read if record["winner"] != "tie"]
        counts["flipped"] = sum(set(each) == {"model", "opponent"} for each in winners.values())
        counts["first_won"] = sum(record["winner"] == record["first"] for record in decided)
        counts["decided"] = len(decided)
        notes.append(
            f"judged in both orders: {counts['flipped']} verdicts flipped, which are ties; the "
            f"answer that stood first won {counts['first_won']} of {len(decided)} judgements that "
            "had a winner"
        )
    rates = {name: _POINTS[outcome] for name, outcome in outcomes.items()}
    shares = {
        metric: {name: float(outcome == which) for name, outcome in outcomes.items()}
        for metric, which in (("wins", "model"), ("ties", "tie"), ("losses", "opponent"))
    }
    return _outcome(turns, {"win_rate": rates, **shares}, counts, title, notes, seed)


def rated(
    turns: Sequence[Turn], judgements: Sequence[Record], *, title: str, seed: int = 0
) -> Outcome:
    """The mean rating, as a share of ten."""
    ratings = {
        record["id"]: record["rating"] / _BEST_RATING
        for record in judgements
        if record["rating"] is not None
    }
    counts = {
        "judgements": len(judgements),
        "unread": len(judgements) - len(ratings),
        "turns": len(turns),
    }
    mean = sum(ratings.values()) / max(len(ratings), 1)
    notes = [f"a mean rating of {mean * _BEST_RATING:.2f} of {_BEST_RATING}"]
    return _outcome(turns, {"rating": ratings}, counts, title, notes, seed)


def _outcome(
    turns: Sequence[Turn],
    metrics: Mapping[str, Mapping[str, float]],
    counts: dict[str, int],
    title: str,
    notes: list[str],
    seed: int,
) -> Outcome:
    """`metrics` are values by a turn's id; the first counts."""
    metric = next(iter(metrics))
    counted = metrics[metric]
    if not counted:
        notes = ["no turn has judgements that can be read: there is no figure"]
    if counts["unread"]:
        notes.append(f"{counts['unread']} of {counts['judgements']} judgements cannot be read")
    groups: dict[str, list[Turn]] = {}
    for turn in turns:
        if turn.id in counted:
            groups.setdefault(turn.script.category, []).append(turn)
    scores, intervals = {}, {}
    for name, group in {**groups, "all": [t for g in groups.values() for t in g]}.items():
        scores[name], bootstrap = _bootstrapped(group, counted, seed)
        share = None
        if metric == "win_rate":
            share = wilson(sum(counted[turn.id] for turn in group), len(group))
        intervals[name] = Interval(share, bootstrap)
    whole = [turn for turn in turns if turn.id in counted]
    result = TaskResult(
        task="judge",
        title=title,
        shots=0,
        metric=metric,
        metrics={name: _bootstrapped(whole, of, seed)[0] for name, of in metrics.items()},
        groups={name: scores[name] for name in sorted(groups)} if len(groups) > 1 else {},
        notes=tuple(notes),
    )
    samples = [
        Sample(
            id=turn.id,
            question=turn.question,
            answer=turn.opponent[-1] if turn.opponent else "",
            given=turn.model[-1],
            metrics={name: of[turn.id] for name, of in metrics.items()},
            group=turn.script.category,
        )
        for turn in whole
    ]
    return Outcome(result, samples, intervals, counts)


def _bootstrapped(
    turns: Sequence[Turn], values: Mapping[str, float], seed: int
) -> tuple[Score, tuple[float, float] | None]:
    """The mean over turns with its standard error, and the interval, by drawing whole dialogs.

    One dialog shows no deviation: there is no interval, and the error is the most that it can be.
    """
    if not turns:
        return Score(0.0, 0.0, 0), None
    names = {name: number for number, name in enumerate(dict.fromkeys(t.script.id for t in turns))}
    dialogs = np.array([names[turn.script.id] for turn in turns])
    of_turn = np.array([values[turn.id] for turn in turns])
    sums = np.bincount(dialogs, of_turn)
    sizes = np.bincount(dialogs)
    mean = math.fsum(of_turn) / len(turns)
    if len(sums) == 1:
        return Score(mean, _MOST_DEVIATION, len(turns)), None
    drawn = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = (float(np.quantile(means, q)) for q in (0.025, 0.975))
    return Score(mean, float(means.std()), len(turns)), (low, high)


def _count(outcomes: Mapping[str, str], which: str) -> int:
    return sum(outcome == which for outcome in outcomes.values())
