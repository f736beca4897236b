"""Choosing the next token from its logits: pure functions over one row, without torch."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from puna.engine.batch import Draw
from puna.engine.params import SamplingParams

NO_CHOICE = "no token can be chosen: the highest logit is not finite"

Logits = NDArray[np.float32]
Ids = Sequence[int] | NDArray[np.integer]


class Cuts(Protocol):
    """What `SamplingParams` and `Draw` both say of the distribution to draw from."""

    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


def adjusted(
    logits_V: Logits,
    params: SamplingParams,
    prompt_ids: Ids,
    output_ids: Ids,
) -> Logits:
    """The logits after repetition, presence and frequency penalty, then bias.

    The same array where nothing applies, else a copy. Ids past its end are left out of penalties;
    in `logit_bias` they raise ValueError.
    """
    penalizes_output = params.presence_penalty != 0 or params.frequency_penalty != 0
    if params.repetition_penalty == 1 and not penalizes_output and not params.logit_bias:
        return logits_V
    row = logits_V.copy()
    size = len(row)
    output = np.asarray(output_ids, np.int64)
    if params.repetition_penalty != 1:
        ids = np.concatenate([np.asarray(prompt_ids, np.int64), output])
        # From the unpenalized row, so that a token seen twice is penalized once.
        ids = ids[ids < size]
        x, penalty = logits_V[ids], params.repetition_penalty
        row[ids] = np.where(x > 0, x / penalty, x * penalty)
    if penalizes_output:
        counts = np.bincount(output, minlength=size)[:size]
        row -= params.presence_penalty * (counts > 0) + params.frequency_penalty * counts
    if params.logit_bias:
        if max(params.logit_bias) >= size:
            raise ValueError(f"logit_bias names token {max(params.logit_bias)} of {size}")
        row[list(params.logit_bias)] += np.array(list(params.logit_bias.values()), np.float32)
    return row


def probabilities(logits_V: Logits, params: SamplingParams) -> NDArray[np.float64]:
    """Adjusted logits -> the distribution that is sampled from; all on one token if greedy.

    In this order, each over what the last one kept:

    - temperature;
    - top-k keeps the k likeliest;
    - min-p (arXiv 2407.01082) those with at least that share of the likeliest's probability;
    - typical (arXiv 2202.00666) those whose information is nearest to the entropy, up to and
      including the one that reaches the mass;
    - top-p (arXiv 1904.09751) the likeliest, up to and including the one that reaches the mass.

    Of equals the lower id is kept. Raises ValueError where the highest logit is not finite.
    """
    ids, weights = _kept(logits_V, params, params.typical_p)
    p = np.zeros(len(logits_V))
    p[ids] = weights / weights.sum()
    return p


def _kept(
    logits_V: Logits, cuts: Cuts, typical_p: float = 1.0
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Ids that can be chosen, ascending, and their unnormalized probabilities, none of them 0."""
    peak = logits_V.max()
    if not np.isfinite(peak):
        raise ValueError(NO_CHOICE)
    if cuts.temperature == 0:
        return np.array([logits_V.argmax()]), np.ones(1)
    ids = _highest(logits_V, cuts.top_k or len(logits_V))
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, which is probability 0
        w = np.exp((logits_V[ids].astype(np.float64) - peak) / cuts.temperature)
    # The likeliest has weight 1: min-p needs no division.
    ids, w = _only(np.flatnonzero((w > 0) & (w >= cuts.min_p)), ids, w)
    if typical_p < 1:
        total = w.sum()
        information = -np.log(w / total)
        order = np.argsort(np.abs(information - information @ w / total), kind="stable")
        count = _reaching(w[order], typical_p * total)
        ids, w = _only(np.sort(order[:count]), ids, w)
    if cuts.top_p < 1:
        total = w.sum()
        # All that are lighter than (1 - p) / len(w) weigh less than 1 - p together, so the rest
        # reach the mass. Half of that leaves room for rounding.
        ids, w = _only(np.flatnonzero(w >= 0.5 * (1 - cuts.top_p) * total / len(w)), ids, w)
        count = _reaching(np.sort(w)[::-1], cuts.top_p * total)
        ids, w = _only(_highest(w, count), ids, w)
    return ids, w


def _only(
    places: NDArray[np.intp], ids: NDArray[np.intp], weights: NDArray[np.float64]
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    return ids[places], weights[places]


def _highest(row: NDArray[np.float32] | NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Places of the `count` highest, ascending; of equals the first ones."""
    size = len(row)
    if count >= size:
        return np.arange(size)
    last = np.partition(row, size - count)[size - count]
    keep = row > last
    keep[np.flatnonzero(row == last)[: count - np.count_nonzero(keep)]] = True
    return np.flatnonzero(keep)


def _reaching(weights: NDArray[np.float64], target: float) -> int:
    """How many of the first weights reach `target` together."""
    return int(np.searchsorted(np.cumsum(weights), target)) + 1


def fresh_seed() -> int:
    """A seed for a request that brought none."""
    return secrets.randbits(64)


def uniform(seed: int, sample: int, index: int) -> float:
    """The random number in [0, 1) that draws token `index` of output `sample` of a request.

    A function of its arguments alone (Philox 4x64, Salmon et al. 2011, keyed by the seed), so that
    a result depends neither on what else is in the batch nor on being interrupted.
    """
    return float(uniforms(seed, sample, index, 1)[0])


def uniforms(seed: int, sample: int, index: int, count: int) -> NDArray[np.float64]:
    """`uniform` of so many tokens from number `index` on, which are cheaper together."""
    counter = np.array([index, sample, 0, 0], np.uint64)
    # Each count gives four words, of which the first is used.
    words = np.random.Philox(key=seed, counter=counter).random_raw(4 * count)[::4]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(
    logits_V: Logits,
    params: SamplingParams,
    prompt_ids: Ids,
    output_ids: Ids,
    *,
    seed: int,
    sample: int = 0,
) -> int:
    """The next token's id: the likeliest (lowest id on a tie) if greedy, else a random draw.

    `seed` stands for `params.seed`, which may be None: draw `fresh_seed` once a request. Raises
    ValueError as `adjusted` and `probabilities` do.
    """
    ids, weights = _kept(
        adjusted(logits_V, params, prompt_ids, output_ids), params, params.typical_p
    )
    if len(ids) == 1:
        return int(ids[0])
    return _drawn(ids, weights, uniform(seed, sample, len(output_ids)))


def drawn(logits_V: Logits, draw: Draw) -> int:
    """The token that a draw chooses from its logits. Raises ValueError as `choose` does."""
    return _drawn(*_kept(logits_V, draw), draw.uniform)


def _drawn(ids: NDArray[np.intp], weights: NDArray[np.float64], uniform: float) -> int:
    mass = np.cumsum(weights)
    # A float below 1 times the total rounds to less than the total, so the place exists; being the
    # first above the draw, it has weight.
    return int(ids[np.searchsorted(mass, uniform * mass[-1], side="right")])


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token under the model's own distribution, before temperature, penalties and cuts.

    `logprob` is natural; `rank` is 1 for the likeliest (of equals the lower id); `top` has the
    likeliest tokens and their log-probabilities, best first, without impossible ones.
    """

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits_V: Logits, token: int, num: int) -> TokenLogprobs:
    """What the model's logits say of `token`, and of the `num` likeliest tokens.

    Raises ValueError for a token that is not in the row and where the highest logit is not finite.
    """
    if not 0 <= token < len(logits_V):
        raise ValueError(f"token {token} is not among {len(logits_V)}")
    peak = np.float64(logits_V.max())
    if not np.isfinite(peak):
        raise ValueError(f"there are no probabilities: the highest logit is {peak}")
    normalizer = peak + np.log(np.exp(logits_V.astype(np.float64) - peak).sum())
    x = logits_V[token]
    rank = 1 + np.count_nonzero(logits_V > x) + np.count_nonzero(logits_V[:token] == x)
    ids = _highest(logits_V, num) if num else np.arange(0)
    ids = ids[np.argsort(-logits_V[ids], kind="stable")]
    top = tuple((int(i), float(logits_V[i] - normalizer)) for i in ids if logits_V[i] > -np.inf)
    return TokenLogprobs(token, float(x - normalizer), int(rank), top)
