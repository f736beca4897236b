"""The stages that train: fine-tuning, reward models, PPO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from puna.data.preference_mix import MIXES
from puna.data.prompts import read_prompts
from puna.formats.run_folder import checkpoint_path
from puna.recipes.alignment.config import Values
from puna.recipes.alignment.loop import Context, State, StoppedError
from puna.recipes.alignment.measure import read_held_out
from puna.recipes.alignment.scorers import Gold, known_scorers, needed_scorers
from puna.train.log import read_log
from puna.train.loop import Settings
from puna.train.plot import plot_loss
from puna.train.ppo.config import PPOConfig, ppo_settings, usual_beta
from puna.train.ppo.config import prepare as prepare_ppo
from puna.train.ppo.early_stopping import best_step, evaluations
from puna.train.ppo.plot import plot_ppo
from puna.train.ppo.run import ppo
from puna.train.ppo.scores import Scorers
from puna.train.preferences import reward
from puna.train.preferences.pair_data import read_pairs
from puna.train.preferences.plots import draw_preferences
from puna.train.preferences.reward import RewardConfig, warmup_steps
from puna.train.producers import rejection_sampling
from puna.train.run_config import read_config
from puna.train.schedule import steps_for
from puna.train.sft import SFTConfig, num_windows, prepare, read_data, run_config, sft
from puna.train.starting import open_start, weights_digest


@dataclass(frozen=True, slots=True)
class Optimizing:
    """How a stage trains; the paper's values but for what a stage says otherwise."""

    learning_rate: float
    epochs: float
    batch_size: int
    warmup_steps: int | None = None
    micro_batch_size: int = 8
    dtype: str = "bf16"
    device: str = "cpu"

    def settings(self, steps: int) -> Settings:
        """A run of so many steps, saved at its end and four times before."""
        return Settings(
            steps=steps,
            learning_rate=self.learning_rate,
            warmup_steps=max(1, steps // 20) if self.warmup_steps is None else self.warmup_steps,
            dtype=self.dtype,
            device=self.device,
            checkpoint_every=max(1, steps // 5),
            keep_checkpoints=1,
        )

    def piece(self, batch_size: int) -> int:
        """What of a batch is computed at once: the most that divides it."""
        return max(n for n in range(1, self.micro_batch_size + 1) if batch_size % n == 0)


@dataclass(frozen=True, slots=True)
class SFTOptions(Optimizing):
    """Llama 2's: 2e-5, 2 epochs, 64 windows. `context_length` None: the model's.

    Each version begins from the base, as the paper's do. `winners`: rejection sampling's are
    learned too; up to V3 those of the version before, later all (`winners_from`, the version from
    which on; the paper's 4).
    """

    learning_rate: float = 2e-5
    epochs: float = 2
    batch_size: int = 64
    context_length: int | None = None
    winners_from: int = rejection_sampling.POOL_FROM


def fine_tuning(context: Context, options: SFTOptions) -> tuple[State, Values]:
    """Fine-tunes the base on the declared dialogs and what the stages so far have made."""
    run, config = context.folder / "run", context.config
    paths = [*config.data.sft, *map(Path, context.state.extra)]
    if context.state.winners:
        pool = context.folder / "winners.jsonl"
        winners = [Path(path) for path in context.state.winners]
        rejection_sampling.write_pool(winners, pool, from_version=options.winners_from)
        paths.append(pool)
    if not run.exists():
        start = open_start(config.base)
        length = options.context_length or start.config.context_length
        with context.console.counting("Encoding", None) as advance:
            found = read_data(
                paths, start.tokenizer(), context_length=length, seed=context.seed,
                on_dialog=advance,
            )  # fmt: skip
        windows = num_windows(found, length)
        batch_size = min(options.batch_size, windows)
        assert start.vocabulary is not None  # open_start saw to it
        prepare(
            run,
            SFTConfig(
                start.config,
                options.settings(steps_for(options.epochs, windows, batch_size)),
                batch_size,
                options.piece(batch_size),
                context.seed,
                context_length=length,
                start=config.base,
            ),
            found,
            start.vocabulary,
        )
        for line in found.skipped.lines():
            context.console.say(f"note: {line}")
    trained(context, run, run_config(run).settings.steps, partial(sft, run))
    records = read_log(run / "log.jsonl")
    held_out = [record["held_out_loss"] for record in records if "held_out_loss" in record]
    figures: Values = {
        "files": len(paths),
        "steps": records[-1]["step"],
        "tokens": records[-1]["tokens"],
        "loss": records[-1]["loss"],
    }
    if held_out:
        figures["held_out_loss"] = held_out[-1]
    return context.state.replaced(policy=str(run)), figures


@dataclass(frozen=True, slots=True)
class RewardOptions(Optimizing):
    """Llama 2's: one epoch, 1e-5, 512 pairs. `of` is helpfulness or safety; of both, the data of
    the other is mixed in as in the paper. `members` are trained, each on the pairs in an order of
    its own, and their mean score counts (*ours*; the paper has one)."""

    learning_rate: float = 1e-5
    epochs: float = 1
    batch_size: int = 512
    of: str = "helpfulness"
    margin: str = "small"
    members: int = 1

    def __post_init__(self) -> None:
        if self.of not in MIXES:
            raise ValueError(f"a reward model is of {' or '.join(MIXES)}, not {self.of!r}")


def reward_model(context: Context, options: RewardOptions) -> tuple[State, Values]:
    """Trains a reward model, or several, from the newest model, on all comparisons so far."""
    names = ["run", *(f"run-{number}" for number in range(2, options.members + 1))]
    runs = [context.folder / name for name in names]
    accuracies = []
    for number, run in enumerate(runs):
        if not run.exists():
            _prepare_reward(context, options, run, context.seed + number)
        config = read_config(run, RewardConfig)
        trained(context, run, config.settings.steps, partial(reward.reward, run))
        draw_preferences(run)
        records = read_log(run / "log.jsonl")
        accuracies += [r["held_out_accuracy"] for r in records if "held_out_accuracy" in r][-1:]
    figures = {"held_out_accuracy": fmean(accuracies)} if accuracies else {}
    return context.state.replaced(**{options.of: tuple(map(str, runs))}), figures


def _prepare_reward(context: Context, options: RewardOptions, run: Path, seed: int) -> None:
    """Makes the folder of one reward model; all of a stage hold the same pairs out."""
    state, data = context.state, context.config.data
    comparisons = {
        "helpfulness": [*data.preferences, *map(Path, state.helpfulness_data)],
        "safety": [*data.safety, *map(Path, state.safety_data)],
    }
    start = open_start(state.policy)
    (other,) = (name for name in comparisons if name != options.of)
    if not comparisons[options.of]:
        raise ValueError(f"there are no comparisons for a reward model of {options.of}")
    with context.console.counting("Encoding", None) as advance:
        found = read_pairs(
            comparisons[options.of],
            start.tokenizer(),
            max_tokens=start.config.context_length,
            seed=context.seed,
            kind=options.of,
            other_paths=comparisons[other],
            on_pair=advance,
        )
    batch_size = min(options.batch_size, len(found.trained))
    steps = steps_for(options.epochs, len(found.trained), batch_size)
    settings = replace(options.settings(steps), warmup_steps=warmup_steps(steps))
    assert start.vocabulary is not None  # open_start saw to it
    reward.prepare(
        run,
        RewardConfig(
            replace(start.config, tied=True),
            settings,
            batch_size,
            options.piece(batch_size),
            seed,
            kind=options.of,
            margin=options.margin,
            start=state.policy,
        ),
        found.trained,
        found.held_out,
        start.vocabulary,
    )
    for line in found.lines():
        context.console.say(f"note: {line}")


@dataclass(frozen=True, slots=True)
class PPOOptions:
    """Llama 2's: 512 answers an iteration in mini-batches of 64, clip 0.2, 1e-6, `beta` 0.01; the
    least of a small model is *ours*.

    Of the evaluations on `held_out` prompts that is handed on which is best by the `chosen_by`:
    reward, which is the reward models' own praise, or gold, the tasks' score, in place of the
    people by whose judgement the paper chose (*ours*; nothing is trained on it).
    """

    iterations: int = 200
    iteration_size: int = 512
    answers_per_prompt: int = 1
    batch_size: int = 64
    micro_batch_size: int = 16
    learning_rate: float = 1e-6
    beta: float | None = None
    max_tokens: int = 96
    evaluate_every: int = 10
    patience: int = 3
    held_out: int = 64
    chosen_by: str = "reward"
    dtype: str = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.chosen_by not in ("reward", "gold"):
            raise ValueError(f"PPO is chosen by reward or gold, not {self.chosen_by!r}")
        if self.chosen_by == "gold" and not self.held_out:
            raise ValueError("PPO is chosen by gold on held-out prompts: held_out must be positive")

    @property
    def kept(self) -> int:
        """Checkpoints: those that may be the best. What the reward stops says nothing of gold."""
        if self.chosen_by == "gold":
            return self.iterations // self.evaluate_every + 1
        return self.patience + 1


def policy_optimization(context: Context, options: PPOOptions) -> tuple[State, Values]:
    """PPO on top of the newest model, held to it, by both reward models; what is best on held-out
    prompts is handed on, which may be where it began."""
    run, state, data = context.folder / "run", context.state, context.config.data
    path = data.ppo_prompts or data.prompts
    assert path is not None
    prompts = read_prompts(path)
    tasks = {task.messages: task for task in read_held_out(path).tasks}
    if len(tasks) < len({prompt.messages for prompt in prompts}):
        tasks = {}  # of some alone there is no gold score
    if options.chosen_by == "gold" and not tasks:
        raise ValueError("PPO cannot be chosen by gold: its prompts are not all tasks")
    (helpfulness,) = needed_scorers(context, "helpfulness")
    if not run.exists():
        start = open_start(state.policy)
        settings = ppo_settings(
            options.iterations,
            options.iteration_size // options.batch_size,
            learning_rate=options.learning_rate,
            evaluate_every=options.evaluate_every,
            patience=options.patience,
            keep_checkpoints=options.kept,
            dtype=options.dtype,
            device=options.device,
        )
        config = PPOConfig(
            start.config,
            settings,
            options.batch_size,
            min(options.micro_batch_size, options.batch_size),
            context.seed,
            iteration_size=options.iteration_size,
            answers_per_prompt=options.answers_per_prompt,
            max_tokens=options.max_tokens,
            beta=usual_beta(start.config) if options.beta is None else options.beta,
            num_held_out=options.held_out,
            patience=options.patience,
            start=state.policy,
            start_digest=weights_digest(start),
        )
        left_out = prepare_ppo(run, config, start, prompts)
        if left_out.too_long:
            context.console.say(f"note: {left_out.too_long} prompts are too long")
    scorers = Scorers(
        helpfulness,
        known_scorers(state, "safety").get("safety"),
        gold=Gold(tasks) if tasks else None,
    )
    config = read_config(run, PPOConfig)
    trained(context, run, config.settings.steps, partial(ppo, run, scorers))
    plot_ppo(run)
    records, by = read_log(run / "log.jsonl"), options.chosen_by
    found = dict(evaluations(run, by=by))
    figures: Values = {"iterations": records[-1]["iteration"] + 1, "kl": records[-1]["kl"]}
    best = best_step(run, by)
    if best is not None:
        figures |= {
            "best_step": best, f"held_out_{by}": found[best], f"held_out_{by}_before": found[0],
        }  # fmt: skip
    at = records[-1]["step"] if best is None else best
    policy = str(checkpoint_path(run, at)) if at else state.policy
    return state.replaced(policy=policy), figures


def trained(context: Context, run: Path, steps: int, train: partial[bool]) -> None:
    """Trains a prepared run, or goes on with it, and draws its losses. StoppedError on a signal."""
    with context.console.training(run.parent.name, run, steps) as shown:
        finished = train(**shown)
    if not finished:
        raise StoppedError(str(run))
    plot_loss(run)
