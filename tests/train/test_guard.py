"""Bad batches: told by hand-worked numbers, skipped, and gone back from, alike after a resume."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from puna.formats.run_folder import checkpoint_path, steps_saved
from puna.tokenizer import Vocabulary
from puna.train import pretrain as stage
from puna.train import window_loss
from puna.train.checkpoints import RunState
from puna.train.guard import DivergedError, objection, spike_limit
from puna.train.log import Record, read_events, read_log
from puna.train.pretrain import pretrain
from tests.train.runs import losses, new_run, newest, run_config, weights

FEW = {"steps": 10, "checkpoint_every": 4, "max_skips": 2}


def test_the_limit_by_hand() -> None:
    # Median 3; deviations 2, 1, 0, 1, 97, of which the median is 1.
    assert spike_limit([1, 2, 3, 4, 100], 10) == pytest.approx(3 + 10 * 1.4826)
    assert spike_limit([2, 4], 1) == pytest.approx(3 + 1.4826)
    # All alike: only what rises by a tenth of a nat is a spike.
    assert spike_limit([2.0] * 9, 10) == pytest.approx(2.1)


def test_what_is_objected_to() -> None:
    nan, inf = float("nan"), float("inf")
    recent = [1.0, 2.0, 3.0, 4.0, 100.0]

    def judge(loss: float, norm: float = 1.0, window: int = 5, deviations: float = 10) -> Any:
        return objection(loss, norm, recent, window=window, deviations=deviations)

    assert judge(17.8) is None and judge(-5) is None
    assert judge(17.9) == (
        "its loss 17.9 is a spike: above 17.83, where the last 5 have a median of 3"
    )
    assert judge(17.9, window=6) is None  # not enough of them yet
    assert judge(17.9, deviations=0) is None and judge(17.9, deviations=11) is None
    for window in (5, 6):
        assert judge(nan, window=window) == "its loss is nan"
        assert judge(-inf, window=window, deviations=0) == "its loss is -inf"
        assert judge(1.0, inf, window=window) == "its gradient norm is inf"


def test_where_a_run_stands_goes_through_json() -> None:
    state = RunState(0, 0).after(3.5, 64, remember=2).after(3.1, 64, remember=2)
    state = state.after(0.1 + 0.2, 60, remember=2)
    assert state == RunState(3, 188, 0, (3.1, 0.1 + 0.2))
    state = dataclasses.replace(state, num_skipped=4)
    assert state.position == 7
    assert RunState(**json.loads(json.dumps(dataclasses.asdict(state)))) == state
    assert RunState(step=3, tokens=5).position == 3  # of an older checkpoint


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes batches bad by what `harm` does to the loss where `bad` says so of their position.

    Gives the list of positions that are asked for.
    """
    true_batches, true_loss = stage.Pretrain.micro_batches, window_loss.next_token_loss_sum

    def damage(
        bad: Callable[[int], bool],
        harm: Callable[[torch.Tensor], torch.Tensor] = lambda loss: loss * float("nan"),
    ) -> list[int]:
        asked: list[int] = []

        def micro_batches(self: stage.Pretrain, position: int) -> list[torch.Tensor]:
            asked.append(position)
            return true_batches(self, position)

        def loss_sum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = true_loss(logits, targets)
            return harm(loss) if torch.is_grad_enabled() and bad(asked[-1]) else loss

        monkeypatch.setattr(stage.Pretrain, "micro_batches", micro_batches)
        monkeypatch.setattr(window_loss, "next_token_loss_sum", loss_sum)
        return asked

    return damage


def infinite_slope(loss: torch.Tensor) -> torch.Tensor:
    """The same loss; the root of 0 is 0, and its slope is infinite."""
    return loss + (loss - loss).sqrt()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda loss: loss * float("nan"), "its loss is nan"),
        (infinite_slope, "its gradient norm is nan"),
        (
            lambda loss: loss * 3,
            r"its loss 1\d\.\d+ is a spike: above \d\.\d+, where the last 3 .*",
        ),
    ],
    ids=["loss", "gradient", "spike"],
)
def test_a_bad_batch_is_skipped(
    tmp_path: Path,
    vocabulary: Vocabulary,
    damaged: Callable[..., list[int]],
    harm: Callable[[torch.Tensor], torch.Tensor],
    why: str,
) -> None:
    run = new_run(tmp_path, vocabulary, run_config(spike_window=3, **FEW))
    asked = damaged(lambda position: position in (4, 5, 8), harm)
    told: list[Record] = []
    records: list[Record] = []
    assert pretrain(run, on_event=told.append, on_record=records.append)
    assert asked == list(range(13))
    assert told == read_events(run / "log.jsonl")
    assert [(e["event"], e["step"], e["num_skipped"]) for e in told] == [
        ("skip", 4, 1), ("skip", 4, 2), ("skip", 6, 3)
    ]  # fmt: skip
    for event in told:
        assert re.fullmatch(why, event["reason"])
    assert records == read_log(run / "log.jsonl")
    assert [r.get("num_skipped", 0) for r in records] == [0] * 4 + [2] * 2 + [3] * 4
    assert records[-1]["tokens"] == 10 * 64
    # The weights are those of a run whose data never had these batches.
    clean = new_run(tmp_path / "clean", vocabulary, run_config(**FEW))
    damaged(lambda position: False)
    left = [0, 1, 2, 3, 6, 7, 9, 10, 11, 12]
    loader = stage.Loader.batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage.Loader, "batch", lambda self, step: loader(self, left[min(step, 9)]))
        assert pretrain(clean)
    assert losses(clean) == losses(run)
    assert weights(checkpoint_path(clean, 10)) == weights(checkpoint_path(run, 10))


def test_going_back_and_resuming(
    tmp_path: Path, vocabulary: Vocabulary, damaged: Callable[..., list[int]]
) -> None:
    asked = damaged(lambda position: position == 5 or 7 <= position < 10)
    run = new_run(tmp_path, vocabulary, run_config(**FEW))
    assert pretrain(run)
    assert asked == list(range(16))  # batches 4 to 9 are left out, and each was seen once
    events = read_events(run / "log.jsonl")
    assert [(e["event"], e["step"], e["num_skipped"]) for e in events] == [
        ("skip", 4 + 1, 1), *(("skip", 6, number) for number in (2, 3, 4)), ("rollback", 4, 6)
    ]  # fmt: skip
    assert events[-1]["left_out"] == 6
    assert events[-1]["reason"] == "3 bad batches in a row after step 6: its loss is nan"
    text = (run / "log.jsonl").read_text()
    assert "NaN" not in text and text.count('"step": 5, "loss"') == 2  # what was undone stays told
    found = read_log(run / "log.jsonl")
    assert [record["step"] for record in found] == list(range(1, 11))
    assert [r.get("num_skipped", 0) for r in found] == [0] * 4 + [6] * 6
    assert newest(run)[1].num_skipped == 6 and steps_saved(run) == [8, 10]

    # Killed anywhere, before, amid and after what it went back from, it comes to the same.
    class PowerCutError(Exception):
        pass

    for place in (6, 8, 9, 12):
        other = new_run(tmp_path / str(place), vocabulary, run_config(**FEW))

        def cut(record: Record, place: int = place) -> None:
            if record["step"] + record.get("num_skipped", 0) == place:
                raise PowerCutError

        with pytest.raises(PowerCutError):
            pretrain(other, on_record=cut, on_event=cut)
        assert pretrain(other)
        assert losses(other) == losses(run)
        assert read_events(other / "log.jsonl") == events
        assert weights(checkpoint_path(other, 10)) == weights(checkpoint_path(run, 10))
        assert newest(other)[1] == newest(run)[1]


def test_it_does_not_go_back_for_ever(
    tmp_path: Path, vocabulary: Vocabulary, damaged: Callable[..., list[int]]
) -> None:
    asked = damaged(lambda position: position >= 9)
    run = new_run(tmp_path, vocabulary, run_config(max_rollbacks=2, **FEW))
    words = "3 bad batches in a row after step 8: .* went back 2 times. The last checkpoint is kept"
    with pytest.raises(DivergedError, match=words):
        pretrain(run)
    assert asked == list(range(9 + 3 * 3)) and steps_saved(run) == [4, 8]
    # A new checkpoint is a new start: it may go back to that as often.
    asked = damaged(lambda position: position in (5, 6, 7, 8, 9, 10, 15, 16, 17))
    other = new_run(tmp_path / "other", vocabulary, run_config(max_rollbacks=2, **FEW))
    assert pretrain(other)
    kinds = [event["event"] for event in read_events(other / "log.jsonl")]
    assert kinds.count("rollback") == 3


def test_nothing_to_go_back_to_and_no_guard(
    tmp_path: Path, vocabulary: Vocabulary, damaged: Callable[..., list[int]]
) -> None:
    damaged(lambda position: position >= 2)
    run = new_run(tmp_path, vocabulary, run_config(**FEW))
    with pytest.raises(DivergedError, match=r"after step 2: its loss is nan; .* has no checkpoint"):
        pretrain(run)
    off = FEW | {"max_skips": 0, "max_rollbacks": 0, "checkpoint_every": 1}
    other = new_run(tmp_path / "other", vocabulary, run_config(**off))
    with pytest.raises(DivergedError, match=r"a bad batch after step 2: its loss is nan. The last"):
        pretrain(other)
    assert steps_saved(other) == [1, 2]


@pytest.mark.parametrize(
    "changes",
    [{"spike_window": 0}, {"spike_deviations": -1}, {"max_skips": -1}, {"max_rollbacks": -1}],
    ids=str,
)
def test_senseless_guards_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        run_config(**changes)
