"""Pages of keys and values: which are free, which are shared, which are kept for a later prompt."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np


class Pages:
    """Counts who uses each page. Full pages go by a key, and outlive their users until needed.

    The key of a page (`chain`) stands for all tokens up to its end, so that a prompt that begins
    as an earlier one finds that one's pages (PagedAttention, arXiv 2309.06180).
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.clear()

    def clear(self) -> None:
        """Forgets all users and all keys."""
        self._free = list(reversed(range(self.num_pages)))
        self._users = [0] * self.num_pages
        self._keys: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}
        # Pages with a key and no user; the one that was left first is reused first.
        self._unused: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """How many can be taken now."""
        return len(self._free) + len(self._unused)

    def is_shared(self, page: int) -> bool:
        """Whether to write there would change what another user, or a later prompt, reads."""
        return self._users[page] > 1 or page in self._keys

    def take(self) -> int | None:
        """A page for one user, None where all are in use."""
        if self._free:
            page = self._free.pop()
        elif self._unused:
            page, _ = self._unused.popitem(last=False)
            del self._pages[self._keys.pop(page)]
        else:
            return None
        self._users[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more user of a page that is in use or kept."""
        if self._users[page] == 0:
            del self._unused[page]
        self._users[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One user less of each. Of a sequence's pages the last is reused before the first."""
        for page in reversed(pages):
            self._users[page] -= 1
            if self._users[page] > 0:
                continue
            if page in self._keys:
                self._unused[page] = None
            else:
                self._free.append(page)

    def keep(self, page: int, key: bytes) -> None:
        """Says what a full page holds; does nothing where another page holds the same."""
        if key not in self._pages and page not in self._keys:
            self._pages[key], self._keys[page] = page, key

    def find(self, key: bytes) -> int | None:
        """The page of a key."""
        return self._pages.get(key)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raises AssertionError unless the pages in use are exactly those of `tables`."""
        users = Counter(page for table in tables for page in table)
        assert self._users == [users[page] for page in range(self.num_pages)]
        free, unused = set(self._free), set(self._unused)
        assert len(free) == len(self._free) and not free & unused
        assert free | unused == set(range(self.num_pages)) - set(users)
        assert unused == {page for page in self._keys if not users[page]}
        assert {key: page for page, key in self._keys.items()} == self._pages


def chain(previous: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a page with `tokens`, after a page with key `previous` (or a name, if first)."""
    data = np.array(tokens, np.int32).tobytes()
    return hashlib.blake2b(data, digest_size=32, key=previous[:64]).digest()
