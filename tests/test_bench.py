"""`puna bench` times what it says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from puna.cli import puna
from puna.commands.models import resolve
from puna.engine import bench
from puna.engine.bench import measure, read_bandwidth, tokens_needed
from tests.engine.fakes import HashRunner


def test_the_table_and_json_say_the_same_jobs() -> None:
    arguments = ["bench", "--batch", "1", "--batch", "3", "--context", "0", "--context", "20"]
    arguments += ["--prompt", "32", "--rounds", "1", "--threads", "1"]
    done = CliRunner().invoke(puna, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    jobs = [(speed["job"], speed["batch"], speed["context"]) for speed in found["speeds"]]
    assert jobs == [("prompt", 1, 0), *(("decode", b, c) for c in (0, 20) for b in (1, 3))]
    assert all(speed["tokens_per_second"] > 0 for speed in found["speeds"])
    weights = sum(t.num_bytes for t in resolve("cria").tensors.values())
    decode = found["speeds"][1]
    assert decode["read"] > weights * decode["tokens_per_second"] and decode["limit"] > 1e8
    text = CliRunner().invoke(puna, arguments).stdout
    assert text.count("decode") == 4 and "GB/s" in text and "%" in text


def test_the_right_rows_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that only the runner moves, one second a step."""
    clock = [0.0]

    class Slow(HashRunner):
        token_bytes = 10

        def step(self, batch: Any) -> Any:
            clock[0] += 1.0
            assert len(batch.outputs) == len(batch.tables)
            return super().step(batch)

    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    needed = tokens_needed([1, 5], [8], 30)
    runner = Slow(-(-needed // 4), 4, context=64)
    options: Any = {"batches": [1, 5], "contexts": [8], "rounds": 2, "num_threads": None}
    speeds = list(measure(runner, resolve("cria"), prompt=30, **options))
    assert [s.tokens_per_second for s in speeds] == [30, 1, 5]
    assert [s.limit for s in speeds] == [None] * 3
    one, five = speeds[1].read, speeds[2].read  # of a step's second: weights, and 16 tokens of each
    assert one is not None and five is not None and five - one == 4 * 16 * Slow.token_bytes
    assert runner.num_rows[:3] == [30] * 3 and set(runner.num_rows[3:]) == {1, 5}
    for changes in ({"contexts": [50]}, {"prompt": 65}):
        with pytest.raises(ValueError, match="more than the model's 64"):
            list(measure(runner, resolve("cria"), **{"prompt": 30} | options | changes))


def test_bandwidth_is_plausible() -> None:
    assert 1e8 < read_bandwidth(1, 1 << 22) < 1e13
