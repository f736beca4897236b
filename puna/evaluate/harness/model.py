"""Puna as a model of lm-eval: `puna` in its registry."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import jinja2
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from puna.chat import LLAMA2_TEMPLATE
from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.engine.prompts import EncodedPrompt

# What stands for BOS and EOS in a rendered dialog: code points that are no characters, so that no
# text of a benchmark spells a control token.
BOS, EOS = "\ufdd0", "\ufdd1"
_MARKS = re.compile(f"([{BOS}{EOS}])")
_AT_ONCE = 64  # contexts in one call of the engine, after which their answers are kept
# Options of generation that mean the same here.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "seed")

T = TypeVar("T")
Answer = tuple[float, bool]
Pair = tuple[Any, list[int], list[int]]  # what was asked, context, ending


@register_model("puna")
class PunaLM(TemplateLM):
    """Log-likelihoods and texts from the engine, which batches by itself.

    `model` and the options are those of `puna.LLM`, or it is one. As with `--model hf`, a text is
    read after BOS, and what is longer than the context loses its beginning. Dialogs are rendered
    in Llama 2's format. What is to be drawn at random follows `seed`.
    """

    def __init__(
        self,
        model: str | Path | LLM = "cria",
        *,
        max_length: int | None = None,
        seed: int | str | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.llm = model if isinstance(model, LLM) else LLM(model, **options)
        self._name = "puna" if isinstance(model, LLM) else str(model)
        context = self.llm.config.context_length
        self.max_length = min(max_length or context, context)
        self._random = random.Random(seed)
        self._encode = lru_cache(maxsize=64)(self._encoded)  # a context comes with each ending
        self._template = jinja2.Environment().from_string(LLAMA2_TEMPLATE)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return self.llm.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows."""
        return self.llm.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Tells lm-eval's cache of prompts whose they are."""
        return self._name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The format of dialogs as Jinja text, where one is asked for."""
        return LLAMA2_TEMPLATE if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A dialog as one text; without `add_generation_prompt` its last answer is to go on."""
        text = self._template.render(messages=chat_history, bos_token=BOS, eos_token=EOS)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        return text[: text.rindex(last) + len(last)]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text, after BOS unless it is not wanted or the text is a rendered dialog."""
        bos = add_special_tokens is not False and not string.startswith(BOS)
        return list(self._encode(string, bos))

    def _encoded(self, string: str, bos: bool) -> tuple[int, ...]:
        tokenizer = self.llm.tokenizer
        ids = [tokenizer.bos_id] * bos
        for part in _MARKS.split(string):
            if part in (BOS, EOS):
                ids.append(tokenizer.bos_id if part == BOS else tokenizer.eos_id)
            elif part:
                ids += tokenizer.encode(part)
        return tuple(ids)

    def is_cut(self, context: str, follows: str | dict[str, Any]) -> bool:
        """Whether a context loses its beginning, for it does not fit together with its ending, or
        with what may be written after it by these options."""
        if isinstance(follows, str):
            # The last token of an ending is not run, so there is room for one more.
            ending, room = follows, self.max_length + 1
        else:
            ending, room = "", self.max_length - self._max_tokens(follows)
        if len(context.encode()) + len(ending.encode()) + 2 <= room:
            return False  # a token has at least a byte
        # First the context alone: it comes with several endings, and its ids are kept.
        return any(len(self.tok_encode(text)) > room for text in (context, context + ending))

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Answer]:
        """Of each ending, its log-likelihood and whether it is the likeliest at every token."""
        found: list[Answer | None] = [None] * len(requests)
        for group in _groups(self._contexts(requests)):
            likelihoods = self.llm.likelihoods(
                [EncodedPrompt(context) for context, _ in group],
                [[requests[index][2] for index in indices] for _, indices in group],
            )
            for (_, indices), own in zip(group, likelihoods, strict=True):
                for index, each in zip(indices, own, strict=True):
                    answer = (each.logprob, each.is_greedy)
                    found[index] = answer
                    if requests[index][0] is not None:  # None: a window of a longer text
                        self.cache_hook.add_partial("loglikelihood", requests[index][0], answer)
        return [answer for answer in found if answer is not None]

    def _contexts(self, requests: Sequence[Pair]) -> list[tuple[tuple[int, ...], list[int]]]:
        """The different contexts, those that begin alike side by side, and whose they are."""
        contexts: dict[tuple[int, ...], list[int]] = {}
        for index, (_, context, ending) in enumerate(requests):
            if not 0 < len(ending) <= self.max_length:
                raise ValueError(
                    f"an ending has {len(ending)} tokens; the model sees {self.max_length} at once"
                )
            # The last token of an ending is not run, so there is room for one more.
            room = self.max_length + 1 - len(ending)
            contexts.setdefault(tuple(context[-room:]), []).append(index)
        return sorted(contexts.items())

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Of each text, predicted in windows as long as the context, every token once."""
        found = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, 1
            )
            pairs = [(None, *make_disjoint_window(window)) for window in windows]
            total = sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string or as many tokens as its options say."""
        found = [""] * len(requests)
        prompts = [self._prompt(*request.args[:2]) for request in requests]
        order = sorted(range(len(requests)), key=lambda index: prompts[index][0])
        for indices in _groups(order):
            outputs = self.llm.generate(
                [_follows(requests[index].args[0], prompts[index][0]) for index in indices],
                [prompts[index][1] for index in indices],
            )
            for index, output in zip(indices, outputs, strict=True):
                found[index] = output.outputs[0].text
                self.cache_hook.add_partial("generate_until", requests[index].args, found[index])
        return found

    def _prompt(self, context: str, options: dict[str, Any]) -> tuple[list[int], SamplingParams]:
        known = dict(normalize_gen_kwargs(options))
        until, max_tokens = known.pop("until"), self._max_tokens(options)
        del known["max_gen_toks"]
        until = [until] if isinstance(until, str) else until
        is_sampled = known.pop("do_sample")
        sampling: dict[str, Any] = {"seed": self._random.getrandbits(63)}
        sampling |= {name: known.pop(name) for name in _SAMPLING if name in known}
        if known:
            raise ValueError(f"Puna does not generate with {', '.join(known)}")
        if not is_sampled:
            sampling["temperature"] = 0
        params = SamplingParams(
            **{"temperature": 1.0, "top_p": 1.0} | sampling,
            max_tokens=max_tokens,
            stop=tuple(text for text in until or () if text),
        )
        return self.tok_encode(context)[-(self.max_length - max_tokens) :], params

    def _max_tokens(self, options: dict[str, Any]) -> int:
        asked = normalize_gen_kwargs(options)["max_gen_toks"]
        # Ours: lm-eval's own models refuse.
        return asked if asked < self.max_length else self.max_length // 2


def _follows(context: str, ids: Sequence[int]) -> EncodedPrompt:
    """A prompt whose answer begins without the space of its first word, as `--model hf` has it.

    Not so after a line break, where spaces are what was written, such as a program's indentation.
    """
    return EncodedPrompt(ids, strip_space=not context.endswith("\n"))


def _groups(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for begin in range(0, len(items), _AT_ONCE):
        yield items[begin : begin + _AT_ONCE]
