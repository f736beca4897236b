"""PPO against reward models, the last stage of Llama 2-Chat (arXiv 2307.09288, section 3.2.3).

An iteration samples an answer to each of its prompts, scores them, and takes a step on each
mini-batch of them; a step of the loop is one mini-batch.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from puna.chat import encode_dialog
from puna.data.permutation import Permutation
from puna.data.prompts import Prompt
from puna.formats.manifest import read_manifest
from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.heads import heads_of, scalar
from puna.lora import without_pairs
from puna.model import Llama
from puna.tokenizer import Tokenizer, Vocabulary
from puna.train.checkpoints import run_state
from puna.train.contracts import Evaluation, Trainee
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
    joined,
    read_answers,
    threads_here,
)
from puna.train.ppo.scores import Scorers, Scores, joined_scores, scores_of
from puna.train.sampling import seed_of


class Query(NamedTuple):
    """A prompt and its ids."""

    prompt: Prompt
    ids: list[int]


class PPO:
    """The stage (`contracts.Stage`). A piece is the numbers of answers (B,) of the iteration.

    It samples from what is trained, so it `meets` that before anything else. Of several processes
    each answers and scores its share of the prompts, by an engine of its own, and all know all of
    it: scores and advantages are whitened together.
    """

    _policy: Trainee
    _reference: Trainee | None
    _engine: PolicyEngine

    def __init__(
        self,
        run: Path,
        config: PPOConfig,
        vocabulary: Vocabulary,
        prompts: Sequence[Prompt],
        scorers: Scorers,
    ) -> None:
        self._run, self._config, self._scorers = run, config, scorers
        self._vocabulary = vocabulary
        tokenizer = Tokenizer(vocabulary)
        queries = [Query(p, encode_dialog(tokenizer, p.messages).ids) for p in prompts]
        self._longest = max(len(query.ids) for query in queries) + config.max_tokens
        order = Permutation(len(queries), f"{config.seed} held out")
        mixed = [queries[order(number)] for number in range(len(queries))]
        self._held_out, self._trained = mixed[: config.num_held_out], mixed[config.num_held_out :]
        self._iteration = -1
        self._experience: Experience | None = None
        self._sums: Counter[str] = Counter()
        self._evaluations: list[float] = []
        self._start: Record = {}

    def meet(self, policy: Trainee, reference: Trainee | None) -> None:
        """`policy` trains a network with a `value` head, `reference` has what it is held to; None:
        the policy without its LoRA pairs."""
        self._policy, self._reference = policy, reference
        is_bf16 = policy.device.type != "cpu" and self._config.settings.dtype == "bf16"
        self._engine = PolicyEngine(
            partial(policy.whole, self._vocabulary),
            self._config.model,
            longest=self._longest,
            device=str(policy.device),
            dtype="bf16" if is_bf16 else "fp32",
            num_threads=threads_here(),
        )

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
        rows = torch.arange(number * size, (number + 1) * size)[self._share(size)]
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

    def evaluate(self, evaluation: Evaluation) -> Record:
        """Scores of answers to the held-out prompts, always drawn by the same random numbers."""
        if not self._held_out:
            return {}
        evaluation.on_batch()
        return {f"held_out_{name}": value for name, value in self._evaluated().items()}

    def begin(self, step: int) -> None:
        """Hears how many steps were done before."""
        found = [reward for _, reward in evaluations(self._run, step)]
        self._evaluations = self._policy.everyone(found)[0]

    def complete(self, record: Record) -> bool:
        """Adds to the record of a step what is known of it; whether the run ends with it."""
        sums = dict(zip(self._sums, self._policy.total(*self._sums.values()), strict=True))
        num_tokens = sums.pop("tokens")
        record |= {name: value / num_tokens for name, value in sums.items()}
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
        queries = [self._query(iteration, number) for number in range(config.iteration_size)]
        answers, scores, seconds = self._answered(
            queries, "answer", iteration, num_checked=config.num_checked
        )
        tokens = answers.tokens
        begun = time.perf_counter()
        logprobs, reference, values = self._measured(tokens)
        seconds["reading"] = time.perf_counter() - begun
        apart = disagreement(answers, logprobs)
        figures = self._figures(answers, scores)
        figures |= {
            "kl": torch.where(tokens.mask, logprobs - reference, 0).sum(1).mean().item(),
            "agreement": apart,
            "rollout_seconds": seconds,
        }
        bound = AGREEMENT[config.settings.dtype]
        if not apart <= bound:
            figures["error"] = (
                f"iteration {iteration}: log-probabilities of policy and engine are {apart:.2g} "
                f"apart, more than {bound:g}"
            )
            if self._policy.leads:
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
        if self._policy.leads:
            write_experience(experience_path(self._run, iteration), experience)
        return experience

    def _share(self, number: int) -> slice:
        """Which of so many are this process's."""
        rank, num_ranks = self._policy.rank, self._policy.num_ranks
        return slice(rank * number // num_ranks, (rank + 1) * number // num_ranks)

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
        """Answers, their scores, and the seconds that both took the slowest process."""
        seeds = [seed_of(self._config.seed, name, iteration, n) for n in range(len(queries))]
        share = self._share(len(queries))
        own = queries[share]

        def answered() -> tuple[Answers, Scores, float, float]:
            begun = time.perf_counter()
            answers = self._engine(
                [query.ids for query in own],
                seeds[share],
                max_tokens=self._config.max_tokens,
                num_checked=-(-num_checked // self._policy.num_ranks),
            )
            sampled = time.perf_counter()
            scores = scores_of(self._scorers, [query.prompt for query in own], answers.texts)
            return answers, scores, sampled - begun, time.perf_counter() - sampled

        found: tuple[Answers, Scores, float, float] | ValueError
        try:
            found = answered()
        except ValueError as error:  # which all are to raise
            found = error
        everyone = self._policy.everyone(found)
        for theirs in everyone:
            if isinstance(theirs, ValueError):
                raise theirs
        answers, scores, sampling, scoring = zip(*everyone, strict=True)
        seconds = {"generation": max(sampling), "scoring": max(scoring)}
        return joined(answers), joined_scores(scores), seconds

    @torch.no_grad()
    def _measured(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token of the answers (B, T), by policy, reference and value head: the two
        log-probabilities and the value, computed in the pieces that are trained on, so that the
        first ratios are 1."""
        pieces = torch.arange(len(tokens.ids)).split(self._config.micro_batch_size)

        def read(model: Callable[..., Tensor], network: Llama, rows: Tensor) -> Tensor:
            piece = tokens.of(rows.cpu()).to(rows.device)
            states, logits, targets = read_answers(model, network, piece)
            found = [token_logprobs(logits, targets)]
            if "value" in heads_of(network):
                found.append(scalar(network, "value", states))
            return torch.stack(found)

        def by(trainee: Trainee) -> Tensor:
            return torch.cat(trainee.measured(pieces, read, lambda: None), 1)

        logprobs, values = by(self._policy)
        if self._reference is not None:
            reference = by(self._reference)[0]
        else:
            with without_pairs(self._policy.network):
                reference = by(self._policy)[0]
        mask = tokens.mask
        padded = torch.zeros(3, *mask.shape)
        padded[:, mask] = torch.stack((logprobs, reference, values))
        return padded[0], padded[1], padded[2]

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
        self._policy.settle()  # one may still be on its way
        if not self._policy.leads:
            return
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
