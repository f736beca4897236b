"""A run as resolved: what those of all stages have, kept in config.json of the run's folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from puna.config import ModelConfig
from puna.data.loader import batch_history
from puna.formats.files import atomic_file
from puna.formats.run_folder import steps_saved
from puna.plan.layout import (
    Layout,
    check_data,
    check_model,
    check_pieces,
    usual_micro_batch,
)  # fmt: skip
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import read_model, write_model
from puna.train.loop import Settings

_CONFIG, _TOKENIZER = "config.json", "tokenizer.model"


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Each stage has its own with what it needs besides; `stage` is its name, that of its command.

    `batch_size` is one number, or its history: pairs of the first step and the size from there on;
    `micro_batch_size` what of a batch a process computes at once.
    """

    model: ModelConfig
    settings: Settings
    batch_size: int | tuple[tuple[int, int], ...]
    micro_batch_size: int
    seed: int = 0

    stage: ClassVar[str]

    def __post_init__(self) -> None:
        batch_history(self.batch_size)
        check_model(self.layout, self.model, self.settings.schedule)
        # What was before a change may have been another layout's.
        batch_size = self.last_batch_size
        check_data(self.layout, batch_size)
        if self.micro_batch_size < 1 or batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {batch_size} is no multiple of micro_batch_size "
                f"{self.micro_batch_size}"
            )
        check_pieces(self.layout, batch_size, self.micro_batch_size, self.settings.schedule)

    @property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """The history of the batch size, from step 0 on."""
        return batch_history(self.batch_size)

    @property
    def last_batch_size(self) -> int:
        """The size since it last changed."""
        return self.batch_sizes[-1][1]

    @property
    def layout(self) -> Layout:
        """How the run is cut; one process where nothing is said."""
        return Layout.parse(self.settings.parallel)

    def opened_by(self, checkpoint: Path) -> str:
        """The options that open a checkpoint of the run."""
        return f"--model {checkpoint}"

    def to_dict(self) -> dict[str, Any]:
        return {"stage": self.stage} | dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; unknown keys and other stages are ValueErrors."""
        values = dict(values)
        if (stage := values.pop("stage", None)) != cls.stage:
            raise ValueError(f"this is not the config of a run of {cls.stage}, but of {stage}")
        try:
            model = ModelConfig.from_dict(values.pop("model"))
            if isinstance(values["batch_size"], list):
                pairs = ((int(step), int(size)) for step, size in values["batch_size"])
                values["batch_size"] = tuple(pairs)
            return cls(model=model, settings=Settings(**values.pop("settings")), **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"the run's config does not fit this version: {error}") from None


C = TypeVar("C", bound=RunConfig)


def write_run(folder: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
    """Config and tokenizer of a run, into its new folder."""
    (folder / _TOKENIZER).write_bytes(write_model(vocabulary))
    (folder / _CONFIG).write_text(_text(config))


def read_vocabulary(run: Path) -> Vocabulary:
    return read_model((run / _TOKENIZER).read_bytes())


def read_config(run: Path, kind: type[C], parallel: str | None = None) -> C:
    """The config of a prepared run, with another layout where one is given.

    ValueError if there is none, it is damaged, of another stage, or the layout does not fit it.
    """
    if not (run / _CONFIG).is_file():
        raise ValueError(f"{run} is not a run: it holds no {_CONFIG}")
    try:
        config = kind.from_dict(json.loads((run / _CONFIG).read_text()))
    except ValueError as error:
        raise ValueError(f"{run / _CONFIG}: {error}") from None
    return config if parallel is None else with_layout(config, parallel)


def with_layout(config: C, parallel: str) -> C:
    """The same run cut otherwise. ValueError where it does not divide so.

    Where the pieces of a batch do not fit a rank's share of it, they become smaller.
    """
    settings = dataclasses.replace(config.settings, parallel=parallel)
    layout = Layout.parse(parallel)
    check_data(layout, config.last_batch_size)
    piece = usual_micro_batch(
        layout, config.last_batch_size, settings.schedule, at_most=config.micro_batch_size
    )
    return dataclasses.replace(config, settings=settings, micro_batch_size=piece)


def with_batch_size(
    config: C, step: int, batch_size: int, micro_batch_size: int | None = None
) -> C:
    """The same run with another batch size from `step` on; windows go on where they were.

    Pieces are as large as before where they divide it. ValueError where the size does not fit.
    """
    before = tuple(pair for pair in config.batch_sizes if pair[0] < step)
    if not before or before[-1][1] != batch_size:
        before = (*before, (step, batch_size))
    if micro_batch_size is None:
        micro_batch_size = usual_micro_batch(
            config.layout,
            batch_size,
            config.settings.schedule,
            at_most=config.micro_batch_size,
        )
    return dataclasses.replace(
        config,
        batch_size=before if len(before) > 1 else batch_size,
        micro_batch_size=micro_batch_size,
    )


def change_batch_size(
    run: Path,
    kind: type[RunConfig],
    batch_size: int | None,
    micro_batch_size: int | None = None,
    *,
    parallel: str | None = None,
) -> None:
    """Writes into a run's config that its batch, or the pieces of it, have another size from the
    newest checkpoint on; and another layout, where one is given."""
    config = read_config(run, kind, parallel)
    step = max(steps_saved(run), default=0)
    size = config.last_batch_size if batch_size is None else batch_size
    config = with_batch_size(config, step, size, micro_batch_size)
    with atomic_file(run / _CONFIG, overwrite=True) as file:
        file.write(_text(config).encode())


def _text(config: RunConfig) -> str:
    return json.dumps(config.to_dict(), indent=2) + "\n"
