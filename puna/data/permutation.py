"""A keyed permutation of 0 ... size - 1 that takes no memory, for sizes of any magnitude.

A generalised Feistel network (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002)
permutes a rectangle of a x b >= size places; a number that lands beyond the size is sent through
again, which ends in a permutation of those below ("cycle walking").
"""

from __future__ import annotations

import hashlib
import math

_ROUNDS = 8


class Permutation:
    """A bijection of range(size), another one for each `key`."""

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"nothing to permute: size {size}")
        self.size = size
        # As square as can be; fewer than a places are beyond the size, so walks are rare.
        self._a = math.isqrt(size - 1) + 1
        self._b = -(-size // self._a)
        digest = hashlib.blake2b(key.encode()).digest()
        self._keys = [digest + bytes([number]) for number in range(_ROUNDS)]

    def __call__(self, index: int) -> int:
        """Where `index` goes; ValueError if it is not in range(size)."""
        if not 0 <= index < self.size:
            raise ValueError(f"{index} is not among the {self.size} that are permuted")
        index = self._once(index)
        while index >= self.size:
            index = self._once(index)
        return index

    def _once(self, index: int) -> int:
        row, column = divmod(index, self._b)
        for number in range(0, _ROUNDS, 2):
            row = (row + self._random(number, column)) % self._a
            column = (column + self._random(number + 1, row)) % self._b
        return row * self._b + column

    def _random(self, number: int, value: int) -> int:
        message = self._keys[number] + value.to_bytes(8, "little")
        return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
