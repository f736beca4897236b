"""Processes meet in a part of the store that is their own, whatever was left in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from puna.parallel.meeting import fresh


def test_every_meeting_is_new() -> None:
    store = dist.HashStore()
    store.set("rank", "an address of before")
    for life, number in enumerate((3, 3, 1, 4, 2)):  # others than before, too
        if life == 1:  # a life that ended before all had come
            store.set("puna/came/1", "gone")
        with ThreadPoolExecutor(number) as pool:
            met = list(pool.map(lambda rank, n=number: fresh(store, rank, n), range(number)))
        assert not any(part.check(["rank"]) for part in met)
        met[-1].set("rank", f"of life {life}")
        assert {part.get("rank") for part in met} == {f"of life {life}".encode()}
