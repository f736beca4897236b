"""Bits per byte of a pretraining run's checkpoints, beside an n-gram model of the same tokens.

    python benchmarks/beside_kneser_ney.py RUN [--sources gutenberg ...] [--windows 200] [--order 5]
                                           [--plot PATH] [--json PATH] [--batch 16]

At each checkpoint of the run the n-gram model (modified interpolated Kneser-Ney,
puna/evaluate/kneser_ney.py) gets exactly the windows that the network was trained on until then.
Both predict the run's held-out windows of each source, each token from what stands before it in its
window; the network in fp32.

Bits per byte are the bits of all predicted tokens over the bytes of text that they decode to. BOS
and EOS are predicted and counted like other tokens, and are no bytes. A source's held-out windows
before the first document that begins among them are left out: they continue one that was trained
on. Where no document begins there all are taken, and the table says so.

Shown are both curves, and after how many tokens the network's comes below the other: interpolated
between checkpoints, along the logarithm of the tokens. The picture is RUN/beside_kneser_ney.png.
`puna pretrain --checkpoint-every` decides how close the points are.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.data.loader import Loader
from puna.evaluate.kneser_ney import KneserNey
from puna.formats import open_checkpoint
from puna.formats.network import load_model
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model
from puna.train import checkpoints
from puna.train.pretrain import Pretrain, PretrainConfig, _loader, run_config

Ids = NDArray[np.int64]
NETWORK, NGRAM = "network", "n-gram"
COLORS = {NETWORK: "#d1495b", NGRAM: "#30638e"}


@dataclass(frozen=True)
class Text:
    """The held-out windows (N, T + 1) of a source and the bytes of what is predicted there."""

    windows: Ids
    num_bytes: int
    num_documents: int  # that begin here; 0: all of it continues one that was trained on


@dataclass(frozen=True)
class Point:
    """What a checkpoint showed: bits per byte by side and source."""

    step: int
    tokens: int
    bits: dict[str, dict[str, float]]
    discounts: list[tuple[float, float, float]]
    num_ngrams: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--sources", nargs="+", help="all by default")
    parser.add_argument("--windows", type=int, help="of a source, at most; all by default")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="windows at once, in the network")
    parser.add_argument("--plot", type=Path, help="RUN/beside_kneser_ney.png by default")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    try:
        compare(args)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


def compare(args: argparse.Namespace) -> None:
    config = run_config(args.run)
    vocabulary = read_model((args.run / "tokenizer.model").read_bytes())
    loader = _loader(args.run, config, vocabulary)
    texts = held_out(loader, vocabulary, args.sources, args.windows)
    steps = checkpoints.steps_saved(args.run)
    if not steps:
        raise ValueError(f"{args.run} has no checkpoints")
    for source, text in texts.items():
        predicted = text.windows.shape[0] * (text.windows.shape[1] - 1)
        print(
            f"{source}: {len(text.windows)} held-out windows, {predicted} tokens, {text.num_bytes} "
            f"bytes, {text.num_documents or 'no'} documents begin there"
            f"{'' if text.num_documents else ': a part of one that was trained on'}"
        )
    # Then a step does not tell which windows came before it.
    if '"event"' in (args.run / "log.jsonl").read_text():
        raise ValueError(f"{args.run} skipped batches or went back; measure a run that did not")
    losses = Losses(args.run, config, loader, vocabulary, args.batch)
    points = []
    for point in measured(steps, texts, loader, losses, config, args.order):
        if not points:
            print(header(texts, args.order), flush=True)
        print(row(point, texts), flush=True)
        points.append(point)
    crossings = {source: crossing(points, source) for source in texts}
    for source in texts:
        print(f"{source}: {verdict(points, source)}")
    path = args.plot or args.run / "beside_kneser_ney.png"
    plot(points, list(texts), crossings, path, args.order)
    print(f"picture: {path}")
    if args.json:
        args.json.write_text(json.dumps(found(args, texts, points, crossings), indent=1) + "\n")


def held_out(
    loader: Loader, vocabulary: Vocabulary, sources: list[str] | None, most: int | None
) -> dict[str, Text]:
    """What is predicted, by source; of its windows `most`, evenly spread."""
    if not loader.num_held_out:
        raise ValueError("the run holds nothing out; train one with --held-out")
    every = loader.held_out()
    if unknown := sorted(set(sources or ()) - set(every)):
        raise ValueError(f"the run has no source {', '.join(unknown)}; it has {', '.join(every)}")
    texts = {}
    for source in sources or every:
        windows = every[source]
        begins = windows == vocabulary.bos_id
        if begins.any():
            first = int(begins.any(axis=1).argmax())
            kept = windows[first if begins[first, 0] else first + 1 :]
            windows = kept if len(kept) else windows
        if most is not None and most < len(windows):
            windows = windows[np.arange(most) * len(windows) // most]
        texts[source] = Text(windows, num_bytes(windows, vocabulary), int(begins.sum()))
    return texts


def num_bytes(windows: Ids, vocabulary: Vocabulary) -> int:
    """Bytes of UTF-8 of the predicted tokens: all but the first of each window."""
    sizes = np.array([len(vocabulary.piece_bytes(token)) for token in range(len(vocabulary))])
    total = int(sizes[windows[:, 1:]].sum())
    if vocabulary.add_space_prefix:
        # The space before a document's first word is not in the text.
        total -= int((windows[:, :-1] == vocabulary.bos_id).sum())
    return total


class Losses:
    """Nats of the network of a checkpoint, in fp32, over all predicted tokens of some windows."""

    def __init__(
        self, run: Path, config: PretrainConfig, loader: Loader, vocabulary: Vocabulary, batch: int
    ) -> None:
        self._run, self._batch = run, batch
        self._stage = Pretrain(
            loader, loader.batch, batch, vocabulary.bos_id, config.document_mask, loss_chunk=1024
        )

    def of(self, step: int) -> Callable[[Ids], float]:
        network = load_model(open_checkpoint(checkpoints.checkpoint_path(self._run, step)))

        @torch.inference_mode()
        def total(windows: Ids) -> float:
            pieces = torch.from_numpy(windows).split(self._batch)
            return sum(self._stage.loss(network, network, piece).item() for piece in pieces)

        return total


def measured(
    steps: list[int],
    texts: dict[str, Text],
    loader: Loader,
    losses: Losses,
    config: PretrainConfig,
    order: int,
) -> Iterator[Point]:
    """A point for each checkpoint."""
    windows: list[Ids] = []
    for step in steps:
        windows += [loader.batch(done) for done in range(len(windows), step)]
        trained = np.concatenate(windows)
        nats: dict[str, dict[str, float]] = {}
        begin = time.perf_counter()
        model = KneserNey(trained, config.model.vocab_size, order=order)
        nats[NGRAM] = {s: -float(model.logprobs(text.windows).sum()) for s, text in texts.items()}
        middle = time.perf_counter()
        loss = losses.of(step)
        nats[NETWORK] = {source: loss(text.windows) for source, text in texts.items()}
        print(
            f"step {step}: n-grams {middle - begin:.1f} s, "
            f"network {time.perf_counter() - middle:.1f} s",
            file=sys.stderr,
        )
        bits = {
            side: {s: n / math.log(2) / texts[s].num_bytes for s, n in by_source.items()}
            for side, by_source in nats.items()
        }
        tokens = trained[:, 1:].size
        yield Point(step, tokens, bits, model.discounts, model.num_ngrams)


def crossing(points: list[Point], source: str) -> float | None:
    """After how many tokens the network comes, for good, below the n-grams; None where it is not
    below at the end, the fewest tokens seen where it is below from there on."""
    behind = [point.bits[NETWORK][source] - point.bits[NGRAM][source] for point in points]
    above = [number for number, difference in enumerate(behind) if difference > 0]
    if not above:
        return float(points[0].tokens)
    last = above[-1]
    if last == len(points) - 1:
        return None
    share = behind[last] / (behind[last] - behind[last + 1])
    before, after = (math.log(points[number].tokens) for number in (last, last + 1))
    return math.exp(before + share * (after - before))


def verdict(points: list[Point], source: str) -> str:
    at = crossing(points, source)
    ours, theirs = (points[-1].bits[side][source] for side in (NETWORK, NGRAM))
    end = f"at the end {ours:.3f} and {theirs:.3f} bits per byte"
    if at is None:
        return f"the network stays above the n-grams; {end}"
    if at == points[0].tokens:
        return f"the network is below the n-grams at all checkpoints; {end}"
    return f"the network goes below the n-grams after {at:,.0f} tokens; {end}"


def header(texts: dict[str, Text], order: int) -> str:
    names = "".join(f"{source[:17]:>19}" for source in texts)
    sides = "".join(f"{'network':>10}{order:>2}-grams" for _ in texts)
    return f"bits per byte{'':9}{names}\n{'step':>8}{'tokens':>14}{sides}"


def row(point: Point, texts: dict[str, Text]) -> str:
    cells = "".join(
        f"{point.bits[NETWORK][source]:10.3f}{point.bits[NGRAM][source]:9.3f}" for source in texts
    )
    return f"{point.step:8}{point.tokens:14,}{cells}"


def found(
    args: argparse.Namespace,
    texts: dict[str, Text],
    points: list[Point],
    crossings: dict[str, float | None],
) -> dict[str, Any]:
    return {
        "run": args.run.name,
        "order": args.order,
        "held_out": {
            source: {
                "windows": len(text.windows),
                "bytes": text.num_bytes,
                "documents": text.num_documents,
            }
            for source, text in texts.items()
        },
        "points": [
            {
                "step": point.step,
                "tokens": point.tokens,
                "bits_per_byte": point.bits,
                "discounts": point.discounts,
                "num_ngrams": point.num_ngrams,
            }
            for point in points
        ],
        "crossing_tokens": crossings,
    }


def plot(
    points: list[Point],
    sources: list[str],
    crossings: dict[str, float | None],
    path: Path,
    order: int,
) -> None:
    """Small multiples, one a source: bits per byte against tokens."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    columns = min(len(sources), 2)
    rows = math.ceil(len(sources) / columns)
    figure = Figure(figsize=(1.2 + 4.6 * columns, 0.6 + 3.4 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    tokens = [point.tokens for point in points]
    labels = {NETWORK: "the network", NGRAM: f"{order}-gram Kneser-Ney, same tokens"}
    for number, axes in enumerate(grid.ravel()):
        if number >= len(sources):
            axes.set_axis_off()
            continue
        source = sources[number]
        for side, label in labels.items():
            values = [point.bits[side][source] for point in points]
            marker = "o" if side == NETWORK else "s"
            axes.plot(
                tokens, values, marker=marker, markersize=4, color=COLORS[side], linewidth=1.8,
                label=label,
            )  # fmt: skip
        at = crossings[source]
        if at is not None and at > tokens[0]:
            axes.axvline(at, color="0.35", linewidth=1, linestyle=(0, (4, 3)))
            axes.annotate(
                f"cross at {short(at)} tokens", (at, 0.97), xycoords=("data", "axes fraction"),
                xytext=(5, 0), textcoords="offset points", va="top", color="0.25", fontsize=9,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_title(source, loc="left", fontsize=11)
        axes.grid(alpha=0.25, which="both", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if number % columns == 0:
            axes.set_ylabel("bits per byte, held out")
        if number + columns >= len(sources):
            axes.set_xlabel("tokens trained on")
            axes.tick_params(labelbottom=True)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(path, format="png", dpi=150)


def short(value: float) -> str:
    """1,200,000 as 1.2M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.0f}"


if __name__ == "__main__":
    main()
