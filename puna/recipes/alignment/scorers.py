"""The reward models that there are so far, as functions of dialogs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from puna.chat import Message
from puna.data.prompts import Prompt
from puna.recipes.alignment.loop import Context, State
from puna.recipes.tasks.task import Task
from puna.train.ppo.scores import by_beginning
from puna.train.producers.judging import switched_scorer
from puna.train.sampling import Dialog, Scorer
from puna.train.scoring import open_scorer
from puna.train.starting import open_start

Key = tuple[Message, ...]


NAMES = ("helpfulness", "safety")


def known_scorers(state: State, *names: str) -> dict[str, Scorer]:
    """Those of these names (of all, without any) that there are, by name. An answer that does not
    fit one's context is scored by its beginning. ValueError where one is of another vocabulary."""
    vocabulary = open_start(state.policy).vocabulary
    found = {}
    for name in names or NAMES:
        scorers = [open_scorer(path, vocabulary=vocabulary) for path in getattr(state, name)]
        if scorers:
            found[name] = mean_of([by_beginning(each, each.fits) for each in scorers])
    return found


def mean_of(scorers: Sequence[Scorer]) -> Scorer:
    """What several reward models say on the average: each is wrong about answers of its own, which
    a policy that is trained on it alone would find (arXiv 2310.02743)."""

    def score(dialogs: Sequence[Dialog]) -> list[float]:
        return [fmean(each) for each in zip(*(s(dialogs) for s in scorers), strict=True)]

    return score


def needed_scorers(context: Context, *names: str) -> list[Scorer]:
    """These; ValueError where no stage before has trained one."""
    if missing := [name for name in names if not getattr(context.state, name)]:
        raise ValueError(
            f"{context.folder.name} needs a reward model of {' and '.join(missing)}: put the stage "
            f"{{ kind = 'reward', of = '{missing[0]}' }} before it"
        )
    known = known_scorers(context.state, *names)
    return [known[name] for name in names]


def counted_scorer(context: Context, prompts: Sequence[Prompt]) -> Scorer:
    """What rejection sampling picks by: Helpfulness', and where there is a Safety model, by the
    paper's switch (`train.producers.judging`)."""
    (helpfulness,) = needed_scorers(context, "helpfulness")
    safety = known_scorers(context.state, "safety").get("safety")
    if safety is None:
        return helpfulness
    provoking = {prompt.messages for prompt in prompts if prompt.is_risky}
    return switched_scorer(helpfulness, safety, lambda dialog: tuple(dialog) in provoking)


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold score of answers to tasks (`recipes.tasks`), which nothing is trained on."""

    tasks: dict[Key, Task]

    def __call__(self, dialogs: Sequence[Dialog]) -> list[float]:
        return [self.tasks[tuple(dialog[:-1])].check(dialog[-1].content) for dialog in dialogs]
