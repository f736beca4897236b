"""Where processes meet: a name space of torchrun's store that no earlier life of theirs has used.

When torchrun starts its processes anew, the store is the same (torch 2.13), and has the addresses
of those that are gone. Its count of restarts is no name: that may differ between machines.
"""

from __future__ import annotations

import os
import time

from torch.distributed.distributed_c10d import PrefixStore, Store

_PAUSE = 0.05  # seconds between two looks


def fresh(store: Store, rank: int, num_ranks: int) -> Store:
    """A part of the store that is empty, and the same for all ranks, which all call this.

    Each comes with a word of its own; the first sends it back with the name, and begins when all
    have heard that. So nobody goes by what was left in the store before.
    """
    own = os.urandom(8).hex()
    if rank == 0:
        _lead(store, own, num_ranks)
        return PrefixStore(own, store)
    store.set(f"puna/came/{rank}", own)
    while True:
        word, _, name = store.get(f"puna/name/{rank}").decode().partition(" ")
        if word == own:
            store.set(f"puna/heard/{rank}", name)
            return PrefixStore(name, store)
        time.sleep(_PAUSE)


def _lead(store: Store, name: str, num_ranks: int) -> None:
    came, names, heard = (
        [f"puna/{what}/{rank}" for rank in range(1, num_ranks)]
        for what in ("came", "name", "heard")
    )
    told: list[bytes] = []
    while num_ranks > 1:
        words = store.multi_get(came)
        if words != told:
            for key, word in zip(names, words, strict=True):
                store.set(key, f"{word.decode()} {name}")
            told = words
        if store.check(heard) and set(store.multi_get(heard)) == {name.encode()}:
            return
        time.sleep(_PAUSE)
