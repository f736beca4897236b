"""PPO against reward models, the last stage of Llama 2-Chat (arXiv 2307.09288, section 3.2.3).

An iteration samples an answer to each of its prompts, scores them, and takes a step on each
mini-batch of them; a step of the loop is one mini-batch.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from puna.chat import encode_dialog
from puna.data.permutation import Permutation
from puna.data.prompts import Prompt
from puna.formats.manifest import read_manifest
from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.heads import scalar
from puna.lora import without_pairs
from puna.model import Llama
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import run_state
from puna.train.log import Record
from puna.train.ppo.advantages import among_alternatives, final_scores
from puna.train.ppo.config import PPOConfig
from puna.train.ppo.early_stopping import evaluations, evaluations_in, stops_early
from puna.train.ppo.experience import (
    Experience,
    experience_path,
    forget_experience,
    learned_from,
    read_experience,
    write_experience,
)
from puna.train.ppo.losses import (
    clipped_policy_loss,
    clipped_value_loss,
    entropies,
    token_logprobs,
)
from puna.train.ppo.rollouts import (
    AGREEMENT,
    Answers,
    PolicyEngine,
    Tokens,
    disagreement,
    read_answers,
)
from puna.train.ppo.scores import Scorers, Scores, scores_of
from puna.train.sampling import seed_of
from puna.train.single import autocast


class Query(NamedTuple):
    """A prompt and its ids."""

    prompt: Prompt
    ids: list[int]


class PPO:
    """The stage (`contracts.Stage`). A piece is the numbers of answers (B,) of the iteration.

    `network` is the policy with a `value` head, `reference` what it is held to; None: the policy
    without its LoRA pairs.
    """

    def __init__(
        self,
        run: Path,
        config: PPOConfig,
        network: Llama,
        reference: Llama | None,
        vocabulary: Vocabulary,
        prompts: Sequence[Prompt],
        scorers: Scorers,
    ) -> None:
        self._run, self._config, self._scorers = run, config, scorers
        self._network, self._reference = network, reference
        settings = config.settings
        tokenizer = Tokenizer(vocabulary)
        queries = [Query(p, encode_dialog(tokenizer, p.messages).ids) for p in prompts]
        on_gpu = settings.device != "cpu"
        self._engine = PolicyEngine(
            network,
            vocabulary,
            longest=max(len(query.ids) for query in queries) + config.max_tokens,
            device=settings.device,
            dtype="bf16" if on_gpu and settings.dtype == "bf16" else "fp32",
        )
        order = Permutation(len(queries), f"{config.seed} held out")
        mixed = [queries[order(number)] for number in range(len(queries))]
        self._held_out, self._trained = mixed[: config.num_held_out], mixed[config.num_held_out :]
        self._iteration = -1
        self._experience: Experience | None = None
        self._sums: Counter[str] = Counter()
        self._evaluations: list[float] = []
        self._start: Record = {}

    # --- the loop's view ---

    def micro_batches(self, position: int) -> list[Tensor]:
        iteration, number = divmod(position, self._config.steps_per_iteration)
        if position == 0 and self._held_out:
            self._start = {"start": self._evaluated()}
        if number == 0:
            # Made anew though it be there: what is in a file may be of weights that were given up.
            self._experience = self._made(iteration)
            self._keep(iteration)
        elif iteration != self._iteration:
            self._experience = read_experience(experience_path(self._run, iteration))
        self._iteration = iteration
        self._sums.clear()
        size = self._config.last_batch_size
        rows = torch.arange(number * size, (number + 1) * size)
        return list(rows.split(self._config.micro_batch_size))

    def num_tokens(self, batch: Tensor) -> int:
        """Tokens of the answers."""
        return int(self._now.tokens.lengths[batch].sum())

    def loss(self, model: Callable[..., Tensor], network: Llama, batch: Tensor) -> Tensor:
        config, now, rows = self._config, self._now, batch.cpu()
        tokens = now.tokens.of(rows)
        mask = tokens.mask
        old, old_values, advantages, returns = (
            x[rows, : mask.shape[1]][mask].to(batch.device)
            for x in (now.logprobs, now.values, now.advantages, now.returns)
        )
        states, logits, targets = read_answers(model, network, tokens.to(batch.device))
        logprobs = token_logprobs(logits, targets)
        policy, clipped = clipped_policy_loss(logprobs, old, advantages, clip=config.clip)
        value = clipped_value_loss(
            scalar(network, "value", states), old_values, returns, clip=config.value_clip
        )
        with torch.no_grad():
            sums = {
                "policy_loss": policy,
                "value_loss": value,
                "clip_fraction": clipped.float(),
                "entropy": entropies(logits),
            }
            self._sums.update({name: x.sum().item() for name, x in sums.items()})
            self._sums["tokens"] += len(targets)
        return (policy + config.value_weight * value).sum()

    def evaluate(self, losses: Callable[[Sequence[Tensor]], list[float]]) -> Record:
        """Scores of answers to the held-out prompts, always drawn by the same random numbers."""
        if not self._held_out:
            return {}
        return {f"held_out_{name}": value for name, value in self._evaluated().items()}

    def begin(self, step: int) -> None:
        """Hears how many steps were done before."""
        self._evaluations = [reward for _, reward in evaluations(self._run, step)]

    def complete(self, record: Record) -> bool:
        """Adds to the record of a step what is known of it; whether the run ends with it."""
        num_tokens = self._sums.pop("tokens")
        record |= {name: value / num_tokens for name, value in self._sums.items()}
        record |= {"iteration": self._iteration, **self._now.figures, **self._start}
        self._evaluations += [reward for _, reward in evaluations_in(record)]
        self._start = {}
        return stops_early(self._evaluations, self._config.patience)

    # --- an iteration ---

    @property
    def _now(self) -> Experience:
        assert self._experience is not None
        return self._experience

    def _made(self, iteration: int) -> Experience:
        """Samples and scores an iteration, and keeps it in the run."""
        config = self._config
        begun = time.perf_counter()
        queries = [self._query(iteration, number) for number in range(config.iteration_size)]
        answers, scores, seconds = self._answered(
            queries, "answer", iteration, num_checked=config.num_checked
        )
        tokens = answers.tokens
        logprobs, reference, values = self._measured(tokens)
        seconds["reading"] = time.perf_counter() - begun - sum(seconds.values())
        mask = tokens.mask
        apart = disagreement(answers, logprobs[mask])
        figures = self._figures(answers, scores)
        figures |= {
            "kl": torch.where(mask, logprobs - reference, 0).sum(1).mean().item(),
            "agreement": apart,
            "rollout_seconds": seconds,
        }
        bound = AGREEMENT[config.settings.dtype]
        if not apart <= bound:
            figures["error"] = (
                f"iteration {iteration}: log-probabilities of policy and engine are {apart:.2g} "
                f"apart, more than {bound:g}"
            )
            logging.getLogger("puna").error(figures["error"])
        counted = final_scores(
            among_alternatives(scores.reward, config.answers_per_prompt),
            answers.finished,
            cut_off_penalty=config.cut_off_penalty,
        )
        experience = learned_from(
            tokens, counted, logprobs, reference, values, figures,
            beta=config.beta, gamma=config.gamma, lambda_=config.lambda_,
        )  # fmt: skip
        write_experience(experience_path(self._run, iteration), experience)
        return experience

    def _query(self, iteration: int, number: int) -> Query:
        """Each prompt once, in an order of its own, before any comes again; for as many answers as
        it gets, which follow each other."""
        size, config = len(self._trained), self._config
        asked = (iteration * config.iteration_size + number) // config.answers_per_prompt
        epoch, place = divmod(asked, size)
        return self._trained[Permutation(size, f"{self._config.seed} epoch {epoch}")(place)]

    def _answered(
        self, queries: Sequence[Query], name: str, iteration: int, *, num_checked: int = 0
    ) -> tuple[Answers, Scores, dict[str, float]]:
        """Answers, their scores, and the seconds that both took."""
        seeds = [seed_of(self._config.seed, name, iteration, n) for n in range(len(queries))]
        begun = time.perf_counter()
        answers = self._engine(
            [query.ids for query in queries],
            seeds,
            max_tokens=self._config.max_tokens,
            num_checked=num_checked,
        )
        sampled = time.perf_counter()
        scores = scores_of(self._scorers, [query.prompt for query in queries], answers.texts)
        seconds = {"generation": sampled - begun, "scoring": time.perf_counter() - sampled}
        return answers, scores, seconds

    @torch.no_grad()
    def _measured(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token of the answers (B, T), by policy, reference and value head: the two
        log-probabilities and the value, computed in the pieces that are trained on, so that the
        first ratios are 1."""
        settings = self._config.settings
        device = torch.device(settings.device)
        found: list[list[Tensor]] = [[], [], []]
        for rows in torch.arange(len(tokens.ids)).split(self._config.micro_batch_size):
            piece = tokens.of(rows).to(device)
            with autocast(device, settings.dtype):
                states, logits, targets = read_answers(self._network, self._network, piece)
                unmoved = self._unmoved(piece)
                each = (
                    token_logprobs(logits, targets),
                    token_logprobs(unmoved, targets),
                    scalar(self._network, "value", states),
                )
            for values, value in zip(found, each, strict=True):
                values.append(value.cpu())
        mask = tokens.mask
        padded = [torch.zeros(mask.shape) for _ in found]
        for whole, values in zip(padded, found, strict=True):
            whole[mask] = torch.cat(values)
        return padded[0], padded[1], padded[2]

    def _unmoved(self, tokens: Tokens) -> Tensor:
        """The logits of the reference."""
        if self._reference is not None:
            return read_answers(self._reference, self._reference, tokens)[1]
        with without_pairs(self._network):
            return read_answers(self._network, self._network, tokens)[1]

    def _figures(self, answers: Answers, scores: Scores) -> Record:
        return scores.means() | {
            "answer_tokens": answers.tokens.lengths.double().mean().item(),
            "finished": answers.finished.double().mean().item(),
        }

    def _evaluated(self) -> Record:
        answers, scores, _ = self._answered(self._held_out, "held out", 0)
        return self._figures(answers, scores)

    def _keep(self, iteration: int) -> None:
        """Removes what was sampled in iterations that no checkpoint is in the middle of."""
        keep = {iteration}
        for step in steps_saved(self._run):
            try:
                position = run_state(read_manifest(checkpoint_path(self._run, step))).position
            except ValueError:
                continue  # damaged: nobody can go on from it
            begun, steps_done = divmod(position, self._config.steps_per_iteration)
            if steps_done:
                keep.add(begun)
        forget_experience(self._run, keep)
