"""How many ways training is cut, from one line such as `fsdp=2 tp=2`, checked before it starts.

dp    replicas that each hold everything (with fsdp: HSDP, arXiv 2304.11277)
fsdp  data-parallel ranks that share weights, gradients and optimizer
pp    stages of consecutive layers, a pipeline
cp    parts of each window's positions (context parallel)
tp    shares of each matrix (tensor parallel), and of the positions between them (sequence parallel)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from puna.config import ModelConfig

# Of a pipeline, with how many stages each makes a rank have. Several shorten the time in which
# ranks wait, for more talk.
SCHEDULES = {"1f1b": 1, "gpipe": 1, "interleaved": 2}


@dataclass(frozen=True, slots=True)
class Layout:
    """The number of ways of each kind; their product is the number of ranks.

    Ranks are numbered with `tp` running fastest and `pp` slowest, so that what talks most lies in
    one machine.
    """

    pp: int = 1
    dp: int = 1
    fsdp: int = 1
    cp: int = 1
    tp: int = 1

    @classmethod
    def parse(cls, line: str) -> Layout:
        """`line` names kinds and numbers: "dp=2 fsdp=4 tp=2". ValueError says what is wrong."""
        known = [field.name for field in dataclasses.fields(cls)]
        sizes: dict[str, int] = {}
        for word in line.replace(",", " ").split():
            name, _, number = word.partition("=")
            if name not in known:
                raise ValueError(
                    f"--parallel: no kind '{name}'; there are dp, fsdp, tp, cp and pp, as in "
                    "'fsdp=2 tp=2'"
                )
            if name in sizes:
                raise ValueError(f"--parallel: {name} is given twice")
            if not (number.isascii() and number.isdigit() and int(number) > 0):
                raise ValueError(f"--parallel: {name} must be a number of ranks, not {number!r}")
            sizes[name] = int(number)
        return cls(**sizes)

    @property
    def num_ranks(self) -> int:
        return self.pp * self.dp * self.fsdp * self.cp * self.tp

    @property
    def num_data_ranks(self) -> int:
        """Ranks that see different windows."""
        return self.dp * self.fsdp

    def __str__(self) -> str:
        sizes = dataclasses.asdict(self).items()
        return " ".join(f"{name}={size}" for name, size in sizes if size > 1) or "fsdp=1"


def resolved(line: str, num_ranks: int) -> str:
    """The line with a number for the kind that is `*`: what the others leave of `num_ranks`.

    ValueError where nothing whole is left, or several are `*`.
    """
    words = line.replace(",", " ").split()
    rest = [word for word in words if word.endswith("=*")]
    if not rest:
        return line
    if len(rest) > 1:
        raise ValueError(f"--parallel: only one kind can be *, not {' and '.join(rest)}")
    others = Layout.parse(" ".join(word for word in words if word not in rest)).num_ranks
    if num_ranks % others or num_ranks < others:
        raise ValueError(
            f"--parallel '{line}' is for a multiple of {others} processes, and there are "
            f"{num_ranks}"
        )
    number = str(num_ranks // others)
    return " ".join(word.replace("*", number) if word in rest else word for word in words)


def check_ranks(layout: Layout, num_ranks: int) -> None:
    """ValueError where `num_ranks` processes are not what the layout is for."""
    if layout.num_ranks != num_ranks:
        raise ValueError(
            f"--parallel '{layout}' is for {layout.num_ranks} processes, and there are "
            f"{num_ranks}; start it by: torchrun --nproc-per-node {layout.num_ranks} -m puna ... "
            "(of several machines, the processes of one)"
        )


def check_model(layout: Layout, config: ModelConfig, schedule: str = "1f1b") -> None:
    """ValueError where a network of this shape cannot be cut so."""
    for what, number, ways in (
        ("heads", config.num_heads, "tp"),
        ("key/value heads", config.num_kv_heads, "tp"),
        ("feed-forward columns", config.ffn_dim, "tp"),
        ("tokens of the vocabulary", config.vocab_size, "tp"),
        ("layers", config.num_layers, "pp"),
        ("positions of a window", config.context_length, "cp"),
    ):
        if number % getattr(layout, ways):
            raise ValueError(
                f"{number} {what} do not divide by {ways}={getattr(layout, ways)}; choose another "
                f"{ways}"
            )
    stages = layout.pp * SCHEDULES[schedule]
    if layout.pp > 1 and config.num_layers % stages:
        raise ValueError(
            f"{config.num_layers} layers do not divide by the {stages} stages of an {schedule} "
            f"pipeline of pp={layout.pp}; choose another pp or schedule"
        )
    if config.context_length // layout.cp % layout.tp:
        raise ValueError(
            f"the {config.context_length // layout.cp} positions of a context rank do not divide "
            f"by tp={layout.tp}, which shares them between the matrices"
        )
    if layout.pp > 1 and config.tied:
        raise ValueError(
            "a pipeline's first stage has the embedding and its last the head; this model ties "
            "them: leave out pp, or train an untied model"
        )


def check_data(layout: Layout, batch_size: int) -> None:
    """ValueError where a batch of so many windows does not divide over the data-parallel ranks."""
    ranks = layout.num_data_ranks
    if batch_size % ranks:
        below = batch_size // ranks * ranks
        near = f"{below} or {below + ranks}" if below else str(ranks)
        raise ValueError(
            f"a batch of {batch_size} windows does not divide by {ranks} data-parallel ranks "
            f"(dp={layout.dp} x fsdp={layout.fsdp}); {near} would"
        )


def check_uncut(layout: Layout, what: str) -> None:
    """ValueError where ranks would have parts of a window or of a layer; `what` cannot."""
    if layout.tp > 1 or layout.cp > 1 or layout.pp > 1:
        raise ValueError(f"'{layout}': {what} can be cut by dp and fsdp alone")


def check_pieces(
    layout: Layout, batch_size: int, micro_batch_size: int, schedule: str = "1f1b"
) -> None:
    """ValueError where pieces of so many windows do not make up a rank's share of a batch."""
    share = batch_size // layout.num_data_ranks
    if share % micro_batch_size:
        raise ValueError(
            f"a data-parallel rank's {share} windows are no multiple of micro_batch_size "
            f"{micro_batch_size}"
        )
    pieces = share // micro_batch_size
    if pieces < layout.pp:
        raise ValueError(
            f"a pipeline of pp={layout.pp} stages needs as many pieces of a batch; {share} windows "
            f"of a data-parallel rank in pieces of {micro_batch_size} are only {pieces}"
        )
    if SCHEDULES[schedule] > 1 and pieces % layout.pp:
        raise ValueError(
            f"an {schedule} pipeline takes as many pieces at a time as it has ranks: {pieces} "
            f"pieces of a batch do not divide by pp={layout.pp}"
        )


def usual_batch(layout: Layout, num_items: int, usual: int) -> int:
    """So many windows or pairs a step, or as many as there are, so that all ranks have a share."""
    ranks = layout.num_data_ranks * layout.pp
    return max(ranks, min(usual, num_items) // ranks * ranks)


def usual_micro_batch(
    layout: Layout, batch_size: int, schedule: str = "1f1b", *, at_most: int | None = None
) -> int:
    """The largest piece of a batch, up to `at_most` windows, that divides it and keeps every stage
    of a pipeline at work."""
    share = batch_size // layout.num_data_ranks
    largest = max(1, min(share // layout.pp, at_most or share))
    multiple = layout.pp if SCHEDULES[schedule] > 1 else 1
    return next(
        (
            size
            for size in range(largest, 0, -1)
            if share % size == 0 and share // size % multiple == 0
        ),
        1,
    )
