"""Exact and near-duplicates over the whole corpus, by datatrove's steps."""

from __future__ import annotations

import itertools
import unicodedata
from functools import partial
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.utils.text import TextNormConfig, simplify_text
from numpy.typing import NDArray

from puna.data.pipeline.config import Source
from puna.data.pipeline.measured import Dropped
from puna.data.pipeline.plan import Plan
from puna.data.pipeline.settings import Exact, Minhash
from puna.data.pipeline.words import Words

_SHINGLES = 1 << 10  # permuted at once: 112 permutations of them fit the cache
_PRIME = np.uint64((1 << 61) - 1)
_BUT_MARKS = TextNormConfig(norm_whitespace=False, norm_unicode_diacritics=False)


def exact_config(plan: Plan) -> ExactDedupConfig:
    """Equal text; the document of the source that is listed first stays."""
    order = {source.name: number for number, source in enumerate(plan.config.sources)}
    return ExactDedupConfig(_text, partial(_priority, order))


def _text(document: Document) -> str:
    return document.text


def _priority(order: dict[str, int], document: Document) -> int:
    """datatrove's: from 1 to 65535, the highest stays."""
    return 65535 - order[document.id.partition("/")[0]]


def exact_signatures(plan: Plan, folder: Path) -> PipelineStep:
    return ExactDedupSignature(str(folder / "signatures"), exact_config(plan))


def exact_find(plan: Plan, folder: Path) -> PipelineStep:
    return ExactFindDedups(str(folder / "signatures"), str(folder / "found"), exact_config(plan))


def exact_step(
    plan: Plan, folder: Path, settings: Exact, dropped: Dropped, source: Source
) -> PipelineStep:
    dropped.reason = "exact duplicate"
    return ExactDedupFilter(str(folder / "found"), exact_config(plan), dropped)


class Signatures(MinhashDedupSignature):
    """datatrove's signatures of a text, faster and in less memory; tested against datatrove's.

    A part of a document at a time: a long book would take gigabytes at once.
    """

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        """Hashes (n-grams, 1) of the n-grams of the text without case, marks and punctuation."""
        joined = " ".join(_without_marks(simplify_text(text, _BUT_MARKS)).split()).encode()
        sizes, n = map(len, joined.split()), self.config.n_grams
        ends = list(itertools.accumulate(sizes, lambda end, size: end + 1 + size))
        begins = [0, *(end + 1 for end in ends)]
        hashed = [
            xxhash.xxh64_intdigest(joined[begin:end])
            for begin, end in zip(begins, ends[n - 1 :], strict=False)
        ]
        return np.array(hashed, np.uint64).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        """The smallest of every permutation of the hashes, by bucket."""
        a, b = self.parameters
        smallest = np.full(a.shape[1], _PRIME, np.uint64)
        for i in range(0, len(shingles), _SHINGLES):
            values = shingles[i : i + _SHINGLES] * a + b
            values = (values & _PRIME) + (values >> np.uint64(61))  # modulo 2^61 - 1, up to one
            np.minimum(smallest, np.minimum(values, values - _PRIME).min(axis=0), out=smallest)
        return [[int(h) for h in bucket] for bucket in np.split(smallest, self.config.num_buckets)]


def _without_marks(text: str) -> str:
    if text.isascii():
        return text
    text = unicodedata.normalize("NFD", text)
    marks = [c for c in set(text) if unicodedata.category(c) == "Mn"]
    return text.translate(dict.fromkeys(map(ord, marks)))


def minhash_config(settings: Minhash) -> MinhashConfig:
    return MinhashConfig(
        n_grams=settings.ngram,
        num_buckets=settings.buckets,
        hashes_per_bucket=settings.hashes_per_bucket,
        seed=settings.seed,
    )


def minhash_signatures(settings: Minhash, folder: Path) -> PipelineStep:
    return Signatures(str(folder / "signatures"), minhash_config(settings), language=Words())


def minhash_buckets(settings: Minhash, folder: Path) -> PipelineStep:
    return MinhashDedupBuckets(
        str(folder / "signatures"), str(folder / "buckets"), config=minhash_config(settings),
        lines_to_buffer=1000,
    )  # fmt: skip


def minhash_clusters(settings: Minhash, folder: Path) -> PipelineStep:
    return MinhashDedupCluster(
        str(folder / "buckets"), str(folder / "remove"), minhash_config(settings)
    )


def minhash_step(folder: Path, settings: Minhash, dropped: Dropped, source: Source) -> PipelineStep:
    dropped.reason = "near-duplicate"
    return MinhashDedupFilter(str(folder / "remove"), dropped)
