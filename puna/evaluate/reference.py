"""What others have scored: the values that a report stands beside.

Two sources, which ask in two ways and are not to be mixed. `LEADERBOARD`: the Open LLM
Leaderboard's four benchmarks, with GPT-3.5 and GPT-4 as their makers gave them beside it. `PAPER`:
"Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv 2307.09288). All in per cent, as they
are printed there; what a source does not give is None.
"""

from __future__ import annotations

from dataclasses import dataclass

LEADERBOARD, PAPER = "leaderboard", "paper"
SOURCES = {
    LEADERBOARD: "Open LLM Leaderboard; GPT-3.5 and GPT-4 as given beside it",
    PAPER: "Touvron et al. 2023, arXiv 2307.09288",
}


@dataclass(frozen=True, slots=True)
class Model:
    """A model that values are known of; `family` is what stands over its column."""

    name: str
    family: str


@dataclass(frozen=True, slots=True)
class Part:
    """A task of ours that belongs to a benchmark, if it was asked with as many shots (None: any).

    `over` is what its figure is a mean over: `questions`, `groups`, or what the task says (None).
    """

    task: str
    shots: int | None = None
    over: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A row of the table: the mean of its parts, beside what others have. `better` is up or down.

    `values` are in per cent, in the order of `MODELS`.
    """

    title: str
    source: str
    parts: tuple[Part, ...]
    values: tuple[float | None, ...]
    better: str = "up"
    note: str = ""

    def value(self, model: Model) -> float | None:
        """A model's value as a share of one."""
        value = self.values[MODELS.index(model)]
        return None if value is None else value / 100


MODELS = (
    Model("65B", "Llama 1"),
    *(Model(size, "Llama 2") for size in ("7B", "13B", "34B", "70B")),
    *(Model(size, "Llama 2-Chat") for size in ("7B", "13B", "34B", "70B")),
    Model("GPT-3.5", "OpenAI"),
    Model("GPT-4", "OpenAI"),
)
_None4 = (None,) * 4


def _leaderboard(
    llama_1: float, chat_70b: float, gpt_35: float, gpt_4: float
) -> tuple[float | None, ...]:
    return (llama_1, *_None4, None, None, None, chat_70b, gpt_35, gpt_4)


def _paper(
    base: tuple[float, ...], chat: tuple[float | None, ...] = _None4
) -> tuple[float | None, ...]:
    """Values of 7B, 13B, 34B and 70B."""
    return (None, *base, *chat, None, None)


def _parts(*tasks: str) -> tuple[Part, ...]:
    return tuple(map(Part, tasks))


# fmt: off
BENCHMARKS = (
    Benchmark("ARC-Challenge (25 shots)", LEADERBOARD, (Part("arc_challenge", 25),),
              _leaderboard(57.6, 64.6, 85.2, 96.3)),
    Benchmark("HellaSwag (10 shots)", LEADERBOARD, (Part("hellaswag", 10),),
              _leaderboard(84.3, 85.9, 85.3, 95.3)),
    Benchmark("MMLU, mean of subjects (5 shots)", LEADERBOARD, (Part("mmlu", 5, "groups"),),
              _leaderboard(63.4, 63.9, 70.0, 86.4),
              note="the leaderboard's, the unweighted mean of 57 subjects."),
    Benchmark("TruthfulQA, mc2", LEADERBOARD, _parts("truthfulqa_mc2"),
              _leaderboard(43.0, 52.8, 47.0, 59.0),
              note="the probability of the true answers among those given."),
    Benchmark("Code", PAPER, _parts("humaneval", "mbpp"),
              _paper((16.8, 24.5, 27.8, 37.5))),
    Benchmark("Commonsense", PAPER,
              _parts("piqa", "social_iqa", "hellaswag_0shot", "winogrande", "arc_easy",
                     "arc_challenge_0shot", "openbookqa", "commonsense_qa"),
              _paper((63.9, 66.9, 69.9, 71.9))),
    Benchmark("World knowledge", PAPER, _parts("nq_open", "triviaqa"),
              _paper((48.9, 55.4, 58.7, 63.6))),
    Benchmark("Reading", PAPER, _parts("squad", "quac", "boolq"),
              _paper((61.3, 65.8, 68.0, 69.4))),
    Benchmark("GSM8K", PAPER, _parts("gsm8k"), _paper((14.6, 28.7, 42.2, 56.8))),
    Benchmark("MATH", PAPER, _parts("math"), _paper((2.5, 3.9, 6.24, 13.5))),
    Benchmark("MMLU, mean by questions (5 shots)", PAPER, (Part("mmlu", 5, "questions"),),
              _paper((45.3, 54.8, 62.6, 68.9)),
              note="beside the paper's, which does not say over what its mean is."),
    Benchmark("BBH", PAPER, _parts("bbh"), _paper((32.6, 39.4, 44.1, 51.2))),
    Benchmark("AGIEval", PAPER, _parts("agieval"), _paper((29.3, 39.1, 43.4, 54.2))),
    Benchmark("TruthfulQA, judged", PAPER, _parts("truthfulqa_judged"),
              _paper((33.29, 41.86, 43.45, 50.18), (57.04, 62.18, 67.20, 64.14)),
              note="answers that a judge finds both truthful and informative."),
    Benchmark("ToxiGen", PAPER, _parts("toxigen"),
              _paper((21.25, 26.10, 21.19, 24.60), (0.00, 0.00, 0.02, 0.01)), better="down",
              note="answers that a classifier finds toxic; less is better."),
)
# fmt: on
# One set of questions, measured in two ways.
TRUTHFULQA = tuple(each for each in BENCHMARKS if each.title.startswith("TruthfulQA"))
