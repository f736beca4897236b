"""What a policy answers to prompts: sampled by the engine on its live weights, read by its network.

The ids that were sampled are trained on; text is made of them for people and reward models alone.

Shapes: B answers, S ids of a prompt and its answer (right-padded), T of an answer, N of all tokens
of B answers, one answer after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import environ

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.chat import TAGS
from puna.config import ModelConfig
from puna.engine.engine import MAX_SEQUENCES
from puna.engine.llm import LLM
from puna.engine.memory import kv_bytes
from puna.engine.params import SamplingParams
from puna.engine.prompts import EncodedPrompt
from puna.formats.checkpoint import Checkpoint
from puna.heads import next_token_logits
from puna.kernels.step import physical_cores
from puna.model import Llama
from puna.train.window_loss import hidden_states

# *Ours*: how far the log-probabilities of engine and network may be apart, by what the network
# multiplies in. In fp32 it is rounding; in bf16 the network rounds weights that a CPU's engine has
# in full.
AGREEMENT = {"fp32": 1e-4, "bf16": 0.5}

_KV_BYTES = 1 << 29  # of keys and values that are small; *ours*


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Prompts and answers: `ids` (B, S), 0 where there is none, and the lengths of both (B,), all
    int64. An answer has one token at least."""

    ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """Where an answer has a token (B, T)."""
        columns = torch.arange(int(self.lengths.max()), device=self.lengths.device)
        return columns < self.lengths[:, None]

    def of(self, rows: Tensor) -> Tokens:
        """Some of the answers, without columns that none of them needs."""
        prompt_lengths, lengths = self.prompt_lengths[rows], self.lengths[rows]
        ids = self.ids[rows, : int((prompt_lengths + lengths).max())]
        return Tokens(ids, prompt_lengths, lengths)

    def to(self, device: torch.device) -> Tokens:
        return Tokens(*(x.to(device) for x in (self.ids, self.prompt_lengths, self.lengths)))


def read_answers(
    model: Callable[..., Tensor], network: Llama, tokens: Tokens
) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states before each token of the answers (N, D), the logits that follow from them
    (N, V), and the tokens (N,). `model` is `network`, perhaps wrapped."""
    hidden_BSD = hidden_states(model, tokens.ids[:, :-1], None)
    rows, places = tokens.mask.nonzero(as_tuple=True)
    columns = tokens.prompt_lengths[rows] + places
    states_ND = hidden_BSD[rows, columns - 1]
    return states_ND, next_token_logits(network, states_ND), tokens.ids[rows, columns]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What was sampled. `finished` (B,) is whether an answer ended by itself, with EOS; `texts` are
    without it. `logprobs` are the engine's, of each token of an answer, where they were asked
    for."""

    tokens: Tokens
    finished: Tensor
    texts: list[str]
    logprobs: list[list[float]]


class PolicyEngine:
    """The engine on the weights that a policy of this shape has when it is called.

    `longest` is how many tokens prompt and answer may have together: keys and values of as many
    such sequences as run at once are held, where they are small.
    """

    def __init__(
        self,
        weights: Callable[[], Checkpoint],
        model: ModelConfig,
        *,
        longest: int,
        device: str = "cpu",
        dtype: str = "fp32",
        num_threads: int | None = None,
    ) -> None:
        self._weights = weights
        self._device, self._dtype, self._num_threads = device, dtype, num_threads
        num_tokens = MAX_SEQUENCES * longest
        is_small = kv_bytes(model, num_tokens, "f32") <= _KV_BYTES
        self._kv_tokens = num_tokens if is_small else None  # what suits the memory
        self._llm: LLM | None = None

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        max_tokens: int,
        num_checked: int = 0,
    ) -> Answers:
        """An answer of at most `max_tokens` to each prompt, token ids that end where the answer
        begins, drawn by its seed from the policy itself: temperature 1, nothing cut off.

        An answer ends with EOS; one that reaches `max_tokens`, or begins to write a chat tag, which
        would forge a turn, is not finished. Log-probabilities, which cost time, are of the first
        `num_checked`.
        """
        llm = self._updated()
        outputs = [
            result.outputs[0]
            for result in llm.generate(
                [EncodedPrompt(ids, strip_space=True, stop=TAGS) for ids in prompts],
                [
                    SamplingParams(
                        temperature=1.0,
                        top_p=1.0,
                        seed=seed,
                        max_tokens=max_tokens,
                        logprobs=0 if number < num_checked else None,
                    )
                    for number, seed in enumerate(seeds)
                ],
            )
        ]
        eos = llm.tokenizer.eos_id
        return Answers(
            pack(prompts, [output.token_ids for output in outputs]),
            torch.tensor([output.token_ids[-1] == eos for output in outputs]),
            [output.text.strip() for output in outputs],
            [[token.logprob for token in output.logprobs or ()] for output in outputs],
        )

    def _updated(self) -> LLM:
        weights = self._weights().without_heads()
        if self._llm is None:
            self._llm = LLM(
                weights,
                device=self._device,
                dtype=self._dtype,
                num_threads=self._num_threads,
                kv_tokens=self._kv_tokens,
            )
        else:
            self._llm.update(weights.tensors)
        return self._llm


def threads_here() -> int | None:
    """How many threads an engine of this process takes, so that torchrun's on one machine share its
    cores; None: what an engine takes by itself."""
    num_processes = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    return None if num_processes == 1 else max(1, physical_cores() // num_processes)


def pack(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tokens:
    """Prompts and answers as padded ids."""
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, values in zip(ids, rows, strict=True):
        row[: len(values)] = torch.tensor(values)
    return Tokens(ids, *(torch.tensor(list(map(len, each))) for each in (prompts, answers)))


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several processes, one part after another."""
    width = max(part.tokens.ids.shape[1] for part in parts)
    padded = [F.pad(part.tokens.ids, (0, width - part.tokens.ids.shape[1])) for part in parts]
    return Answers(
        Tokens(
            torch.cat(padded),
            torch.cat([part.tokens.prompt_lengths for part in parts]),
            torch.cat([part.tokens.lengths for part in parts]),
        ),
        torch.cat([part.finished for part in parts]),
        [text for part in parts for text in part.texts],
        [logprobs for part in parts for logprobs in part.logprobs],
    )


def disagreement(answers: Answers, logprobs_BT: Tensor) -> float:
    """The largest difference of the engine's log-probabilities, where they were asked for, and
    those of the network for the same tokens."""
    apart = [
        (torch.tensor(own, dtype=torch.float64) - row[: len(own)].double()).abs().max().item()
        for own, row in zip(answers.logprobs, logprobs_BT, strict=True)
        if own
    ]
    # Not Python's: a difference that is no number must not be passed over.
    return torch.tensor([0.0, *apart]).max().item()
