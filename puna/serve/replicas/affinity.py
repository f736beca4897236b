"""Which replica is asked: the one that has most of the prompt, unless it is much busier."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

from puna.engine.pages import chain
from puna.kernels.kv_types import PAGE_SIZE

MAX_PAGES = 256  # of a prompt that are compared
MAX_KEYS = 1 << 16  # that are remembered: as many as there are pages for a million tokens

# Ours: what a replica may have to do more than the least busy one, and still be asked for the
# pages that it has. Reading a prompt again costs about as much as running beside so many others.
_TIMES, _MORE = 2, 2


def prefix_keys(tokens: Sequence[int], adapter: str | None = None) -> list[bytes]:
    """Keys of a prompt's full pages; prompts that begin alike, with one adapter, share the first.

    Empty for ids that no model has: these are refused where they arrive.
    """
    key = hashlib.blake2b((adapter or "").encode(), digest_size=32).digest()
    keys = []
    for begin in range(0, min(len(tokens), MAX_PAGES * PAGE_SIZE) - PAGE_SIZE + 1, PAGE_SIZE):
        try:
            key = chain(key, tokens[begin : begin + PAGE_SIZE])
        except OverflowError:
            return []
        keys.append(key)
    return keys


def chosen(pages: Mapping[str, int], requests: Mapping[str, int]) -> str:
    """The best of the replicas in `requests`, which says how many each has to do.

    `pages` says how many of the prompt's pages each has. Where that is equal the least busy one is
    taken, and the first of those.
    """
    most = _TIMES * min(requests.values()) + _MORE
    free = [replica for replica, count in requests.items() if count <= most]
    return max(free, key=lambda replica: (pages.get(replica, 0), -requests[replica]))


class Affinity:
    """What each replica was given, and what it has to do."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        # Who has a page; what was not asked for longest is forgotten first.
        self._holders: OrderedDict[bytes, set[str]] = OrderedDict()
        self._running: dict[str, str] = {}  # request -> replica
        self._served: dict[str, int] = {}  # replica -> requests that were ever given to it

    def choose(self, request: str, keys: Sequence[bytes], replicas: Iterable[str]) -> str:
        """Gives a request with these pages to one of the replicas."""
        self.end(request)
        # The one that was asked least comes first, so that equals take turns.
        order = sorted(replicas, key=lambda replica: self._served.get(replica, 0))
        counts = dict.fromkeys(order, 0)
        for replica in self._running.values():
            if replica in counts:
                counts[replica] += 1
        replica = chosen(self._pages(keys, order), counts)
        self._served[replica] = self._served.get(replica, 0) + 1
        self.give(request, keys, replica)
        return replica

    def give(self, request: str, keys: Sequence[bytes], replica: str) -> None:
        """The request went to this replica, whatever was chosen."""
        self._running[request] = replica
        # From the last page to the first, which is to be forgotten last.
        for key in reversed(keys):
            self._holders.setdefault(key, set()).add(replica)
            self._holders.move_to_end(key)
        while len(self._holders) > self._max_keys:
            self._holders.popitem(last=False)

    def end(self, request: str) -> None:
        """The request has ended, if it was one."""
        self._running.pop(request, None)

    def forget(self, replica: str) -> None:
        """The replica is gone, and all that it had."""
        self._served.pop(replica, None)
        self._running = {r: where for r, where in self._running.items() if where != replica}
        for key in list(self._holders):
            self._holders[key].discard(replica)
            if not self._holders[key]:
                del self._holders[key]

    def _pages(self, keys: Sequence[bytes], replicas: Iterable[str]) -> dict[str, int]:
        """How many of the first pages each has."""
        found: dict[str, int] = {}
        left = set(replicas)
        for key in keys:
            left &= self._holders.get(key, set())
            if not left:
                break
            for replica in left:
                found[replica] = found.get(replica, 0) + 1
        return found
