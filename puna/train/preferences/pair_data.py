"""What a stage on pairs trains and evaluates on: files read, mixed, parted and encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puna.data.pairs import EncodedPairs, encode_pairs
from puna.data.preference_mix import mixed, split_by_prompt
from puna.data.preferences import Comparison, read_comparisons
from puna.tokenizer import Tokenizer

NOT_HELD_OUT = "prompts that are held out"


@dataclass(frozen=True, slots=True)
class PairData:
    """Pairs to train on and to evaluate on; how many came from elsewhere, and what was left out
    or shortened, by reason."""

    trained: EncodedPairs
    held_out: EncodedPairs
    num_others: int
    counts: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """What was left out, for people."""
        return [f"{count:,} {reason}" for reason, count in self.counts.most_common()]


def read_pairs(
    paths: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    seed: int,
    kind: str | None = None,
    other_paths: Sequence[Path] = (),
    num_held_out: int | None = None,
    held_out_paths: Sequence[Path] = (),
    form: str | None = None,
    on_pair: Callable[[], None] = lambda: None,
) -> PairData:
    """Reads comparisons (`data.preferences`); a dialog takes `max_tokens` at most.

    Those of `other_paths` are mixed in as the `kind` says (`data.preference_mix`). Held out are the
    comparisons of `held_out_paths`, or without these `num_held_out` of `paths`, whole prompts drawn
    by `seed`: by default a tenth, at most 256 (*ours*). None of their prompts is trained on.
    ValueError where no pair is left to train on.
    """
    counts: Counter[str] = Counter()
    own, others, asked = (
        _read(group, form, counts) for group in (paths, other_paths, held_out_paths)
    )
    if not held_out_paths:
        count = min(256, len(own) // 10) if num_held_out is None else num_held_out
        if not 0 <= count < len(own):
            raise ValueError(f"{count} comparisons cannot be held out of {len(own)}")
        own, asked = split_by_prompt(own, count, seed)
    prompts = {each.prompt for each in asked}
    kept = [each for each in own if each.prompt not in prompts]
    others = [each for each in others if each.prompt not in prompts]
    counts[NOT_HELD_OUT] += len(own) - len(kept)
    num_others = 0
    if kind is not None:
        together = mixed(kind, kept, others, seed)
        num_others, kept = len(together) - len(kept), together
    trained, unfit = encode_pairs(kept, tokenizer, max_tokens=max_tokens, on_pair=on_pair)
    held_out, also = encode_pairs(asked, tokenizer, max_tokens=max_tokens, on_pair=on_pair)
    counts = +(counts + unfit + also)
    data = PairData(trained, held_out, num_others, counts)
    if not len(trained):
        why = "; ".join(data.lines())
        raise ValueError("no pair to train on" + (f": {why}" if why else ""))
    return data


def _read(paths: Sequence[Path], form: str | None, counts: Counter[str]) -> list[Comparison]:
    found: list[Comparison] = []
    for path in paths:
        comparisons, skipped = read_comparisons(path, form=form)
        found += comparisons
        counts += skipped
    return found
