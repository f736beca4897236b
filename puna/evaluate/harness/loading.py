"""A benchmark of the table -> lm-eval's tasks, with rows from local files or the hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lm_eval.tasks
from datasets import Dataset, DatasetDict
from lm_eval.api.samplers import get_sampler
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from puna.evaluate.tasks.task import Splits, Task


def load(
    task: Task, data: Path | None, *, shots: int, seed: int, shared_shots: bool
) -> dict[str, Any]:
    """lm-eval's task of each group, with so many shots before a question.

    The shots are drawn by `seed` for each question, as lm-eval draws them, or are the first ones
    for all (`shared_shots`). Rows come from the folder `data`, of which nothing is asked the
    network, or from the hub. ValueError where they cannot be had.
    """
    if data is None and not task.on_hub:
        raise ValueError(f"the hub has no rows of {task.name} in a form that is read; give --data")
    build = _builder(task)
    rows = None if data is None else task.rows(data / task.folder)
    found = {}
    for group, name in task.parts.items():
        changes: dict[str, Any] = {**task.changes, "task": name, "num_fewshot": shots}
        if rows is not None:
            changes |= {
                **task.local_changes,
                "custom_dataset": partial(_data_set, rows[group]),
                "dataset_kwargs": {},
            }
        try:
            found[group] = build(changes)
        except KeyError as error:
            if rows is None:
                raise
            raise ValueError(f"the files of {name} have no rows of its split {error}") from None
        except OSError as error:
            raise ValueError(
                f"the rows of {task.name} did not come from the hub ({error}); give --data DIR"
            ) from None
        if shared_shots:
            found[group].sampler = get_sampler("first_n")(list(found[group].fewshot_docs()))
        found[group].set_fewshot_seed(seed)
    return found


def _builder(task: Task) -> Callable[[dict[str, Any]], Any]:
    """What makes lm-eval's task of a configuration, which may stand on one that lm-eval has."""
    if task.definitions is None:
        return lambda changes: ConfigurableTask(config=changes)
    folder = Path(lm_eval.tasks.__file__).parent / task.definitions
    manager = TaskManager(include_path=folder, include_defaults=False)

    def build(changes: dict[str, Any]) -> Any:
        # Within a group is where lm-eval lets a task be configured otherwise.
        (loaded,) = manager.load({"group": task.name, "task": [changes]})["tasks"].values()
        return loaded

    return build


def _data_set(splits: Splits, **metadata: Any) -> DatasetDict:
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items() if rows})
