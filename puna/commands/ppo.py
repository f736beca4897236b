"""`puna ppo`: trains a model towards what reward models prefer."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from puna.commands.lora_options import lora_options
from puna.commands.models import lasting_name, locate
from puna.commands.options import json_option
from puna.commands.ranks import (
    by_the_first,
    check_started,
    is_first,
    said_by_one,
    said_once,
    starred,
)
from puna.commands.train_options import hang_timeout_option
from puna.commands.train_run import begin, only_given, say_layout
from puna.commands.training import told
from puna.plan.layout import Layout, usual_micro_batch

if TYPE_CHECKING:
    from puna.formats.checkpoint import Checkpoint
    from puna.lora import LoRASettings
    from puna.train.ppo.config import PPOConfig
    from puna.train.ppo.scores import Scorers

# What may be said of a run that goes on; the rest is in its config.
_ON_RESUME = frozenset(
    {"out", "resume", "tensorboard", "wandb", "parallel", "hang_timeout", "as_json"}
)
_BATCH, _PIECE = 64, 8  # answers of a step, the paper's, and at once, *ours*


@click.command()
@click.option("--model", "-m", metavar="MODEL", help="What to begin from, a model that chats: a "
              "file or folder in any format, a shipped model, or a hub's.")  # fmt: skip
@click.option("--prompts", type=click.Path(path_type=Path), metavar="FILE",
              help="Dialogs that wait for an answer, one a line.")  # fmt: skip
@click.option("--reward", metavar="RM", help="Reward model of helpfulness.")
@click.option("--safety-reward", metavar="RM", help="Safety model, which decides for prompts with "
              "is_safety or a risk, and for unsafe answers.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--iterations", type=click.IntRange(min=1), default=200, show_default=True)
@click.option("--answers-per-prompt", type=click.IntRange(min=1), default=1, show_default=True,
              help="With several, a score is compared with those of the others.")  # fmt: skip
@click.option("--iteration-size", type=click.IntRange(min=1), default=512, show_default=True,
              help="Answers of an iteration.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=_BATCH, show_default=True,
              help="Answers of a step.")  # fmt: skip
@click.option("--micro-batch-size", type=click.IntRange(min=1), show_default=str(_PIECE),
              help="Answers at once.")  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True,
              help="Of an answer.")  # fmt: skip
@click.option("--learning-rate", type=float, default=1e-6, show_default=True, help="Constant.")
@click.option("--beta", type=float, help="Weight of the KL penalty.  [default: 0.01, from 20B "
              "parameters on 0.005]")  # fmt: skip
@click.option("--cut-off-penalty", type=float, default=1.0, show_default=True,
              help="What an answer that did not end loses, in deviations of rewards.")  # fmt: skip
@click.option("--held-out", type=click.IntRange(min=0), default=64, show_default=True,
              help="Prompts kept from training, to evaluate on.")  # fmt: skip
@click.option("--eval-every", type=click.IntRange(min=1), default=10, show_default=True,
              help="Iterations; so often there is a checkpoint too.")  # fmt: skip
@click.option("--patience", type=click.IntRange(min=0), default=3, show_default=True,
              help="Evaluations without a better one that end the run; 0: none do.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True,
              help="What training multiplies in.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True)
@click.option("--parallel", default="", help="How torchrun's processes share the work: ways of dp "
              "and fsdp, such as 'fsdp=8'; a * takes the rest.")  # fmt: skip
@hang_timeout_option
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--tensorboard", is_flag=True, help="Log to TensorBoard, in the run's folder, too.")
@click.option("--wandb", is_flag=False, flag_value="puna", metavar="[PROJECT]",
              help="Log to Weights & Biases too.")  # fmt: skip
@lora_options
@json_option
def ppo(
    model: str | None,
    prompts: Path | None,
    reward: str | None,
    safety_reward: str | None,
    out: Path,
    resume: bool,
    iterations: int,
    answers_per_prompt: int,
    iteration_size: int,
    batch_size: int,
    micro_batch_size: int | None,
    max_tokens: int,
    learning_rate: float,
    beta: float | None,
    cut_off_penalty: float,
    held_out: int,
    eval_every: int,
    patience: int,
    dtype: str,
    device: str,
    parallel: str,
    hang_timeout: float,
    seed: int,
    tensorboard: bool,
    wandb: str | None,
    lora: LoRASettings | None,
    as_json: bool,
) -> None:
    """Train a model towards what reward models prefer, with Llama 2's PPO.

    The run's folder has log.jsonl, ppo.png and checkpoints that chat, the best of them named at the
    end. Ctrl-C saves and stops; --resume goes on to the identical result.
    """
    from puna.data.prompts import read_prompts
    from puna.train import sinks
    from puna.train.ppo.config import PPOConfig, ppo_settings, prepare, usual_beta
    from puna.train.run_config import read_config
    from puna.train.running import check_machine
    from puna.train.starting import open_start, weights_digest

    asked = {"tensorboard": ""} if tensorboard else {}
    if wandb is not None:
        asked["wandb"] = wandb
    with said_once():
        parallel = starred(parallel)
        sinks.chosen(out, asked)
        if resume:
            only_given(_ON_RESUME)
            config = read_config(out, PPOConfig, parallel or None)
            check_started(config.settings.parallel)
            check_machine(config.settings.device, float8=False)
            if (
                is_first()
                and config.scorer_digest
                and config.scorer_digest != _scorer_digest(config)
            ):
                raise ValueError(
                    f"the reward models of {out} are not what they were: bring those back, or "
                    "begin another run"
                )
        elif model is None or prompts is None or reward is None:
            raise ValueError("give --model, --prompts and --reward, or --resume")
        else:
            check_started(parallel)
            check_machine(device, float8=False)
    if resume:
        _train(out, parallel, hang_timeout, asked, as_json)
        return

    def prepare_run() -> None:
        assert model is not None and prompts is not None and reward is not None
        start = open_start(locate(model))
        start.check_speaks()
        piece = micro_batch_size
        if piece is None:
            piece = usual_micro_batch(Layout.parse(parallel), batch_size, at_most=_PIECE)
        config = PPOConfig(
            start.config,
            ppo_settings(
                iterations,
                max(1, iteration_size // batch_size),
                learning_rate=learning_rate,
                evaluate_every=eval_every,
                patience=patience,
                dtype=dtype,
                device=device,
                parallel=parallel,
            ),
            batch_size,
            piece,
            seed,
            iteration_size=iteration_size,
            answers_per_prompt=answers_per_prompt,
            max_tokens=max_tokens,
            beta=usual_beta(start.config) if beta is None else beta,
            cut_off_penalty=cut_off_penalty,
            num_held_out=held_out,
            patience=patience,
            start=lasting_name(model, start.path),
            start_digest=weights_digest(start),
            helpfulness=_reward_model(reward, start),
            safety="" if safety_reward is None else _reward_model(safety_reward, start),
            lora=_in_fp32(lora),
        )
        config = replace(config, scorer_digest=_scorer_digest(config))
        left_out = prepare(out, config, start, read_prompts(prompts))
        if left_out.too_long:
            click.echo(
                f"note: {left_out.too_long:,} prompts left out: no room for an answer of "
                f"{max_tokens} tokens in the context of {start.config.context_length}",
                err=True,
            )
        if left_out.repeated:
            click.echo(f"note: {left_out.repeated:,} prompts left out: repeated", err=True)

    by_the_first(partial(begin, out, prepare_run), parallel, device, hang_timeout)
    _train(out, parallel, hang_timeout, asked, as_json)


def _in_fp32(lora: LoRASettings | None) -> LoRASettings | None:
    """With a base that pairs can be merged into, where nothing else was said."""
    return lora if lora is None or lora.base != "auto" else replace(lora, base="fp32")


def _reward_model(model: str, start: Checkpoint) -> str:
    """Where it lies; ValueError, before anything is written, unless it can score the start."""
    from puna.train.scoring import check_scorer
    from puna.train.starting import open_start

    opened = open_start(locate(model))
    check_scorer(opened, start.vocabulary)
    if opened.config.context_length < start.config.context_length:
        raise ValueError(
            f"{model} has a context of {opened.config.context_length} tokens, shorter than the "
            f"{start.config.context_length} of the model that it is to score"
        )
    return lasting_name(model, opened.path)


def _scorer_digest(config: PPOConfig) -> str:
    from puna.train.starting import open_start, scorers_digest

    return scorers_digest(
        [open_start(each) for each in (config.helpfulness, config.safety) if each]
    )


def _scorers(config: PPOConfig, device: str) -> Scorers:
    from puna.train.ppo.rollouts import threads_here
    from puna.train.ppo.scores import Scorers, by_beginning
    from puna.train.scoring import open_scorer

    def opened(model: str) -> Any:
        scorer = open_scorer(model, device=device, num_threads=threads_here())
        return by_beginning(scorer, scorer.fits)

    return Scorers(opened(config.helpfulness), opened(config.safety) if config.safety else None)


def _train(
    out: Path, parallel: str, hang_timeout: float, asked: dict[str, str], as_json: bool
) -> None:
    from puna.parallel.place import leave, meet_to_train
    from puna.train.ppo.config import PPOConfig
    from puna.train.ppo.plot import plot_ppo
    from puna.train.ppo.run import ppo as run_ppo
    from puna.train.run_config import read_config
    from puna.train.sinks import chosen, opened

    with said_once():
        config = read_config(out, PPOConfig, parallel or None)
    say_layout(config)
    settings = config.settings
    sinks = opened(out, chosen(out, asked) if is_first() else {})
    with said_by_one(), told(settings.steps, sinks, shown=is_first()) as (telling, _):
        device = settings.device
        if settings.parallel:
            device = str(meet_to_train(device, hang_timeout))
        finished = run_ppo(
            out,
            _scorers(config, device),
            parallel=parallel or None,
            hang_timeout=hang_timeout,
            **telling,
        )
    leave()
    if is_first():
        _report(out, config, finished, plot_ppo(out), as_json)


def _report(out: Path, config: PPOConfig, finished: bool, picture: Path, as_json: bool) -> None:
    """How the run stands, and which of its checkpoints is best."""
    from puna.formats.run_folder import checkpoint_path, steps_saved
    from puna.train.ppo.early_stopping import best_step, evaluations

    newest, best = steps_saved(out)[-1], best_step(out)
    at = newest if best is None else best
    path = str(checkpoint_path(out, at)) if at else config.start
    found = dict(evaluations(out))
    if as_json:
        values = {
            "finished": finished, "steps": newest, "best_step": best, "best": path,
            "held_out_rewards": found, "picture": str(picture),
        }  # fmt: skip
        click.echo(json.dumps(values))
    if not finished:
        name = checkpoint_path(out, newest).name
        click.echo(f"stopped at {name}; go on with --out {out} --resume", err=True)
        raise click.Abort
    click.echo(f"trained: {checkpoint_path(out, newest)}; rewards and KL in {picture}", err=True)
    if best is not None:
        click.echo(
            f"best on held-out prompts: {path}, {found[best]:.3f} (the start: {found[0]:.3f})"
            + ("; nothing after it was better" if best == 0 else ""),
            err=True,
        )
    opened_by = config.opened_by(Path(path)) if at else f"--model {path}"
    click.echo(f"try it: puna chat {opened_by}", err=True)
