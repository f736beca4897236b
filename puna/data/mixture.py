"""An exact mixture: which source the n-th window of a run is drawn from, without state.

The sources are the leaves of a binary tree. At a node that m draws have reached, the left side has
had m times its share of the weight, rounded to the nearest; so any draw is found, and any number of
draws counted, by one walk down the tree in whole numbers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class _Node:
    left: _Node | int
    right: _Node | int
    left_weight: int
    weight: int

    def left_count(self, count: int) -> int:
        """Of the first `count` draws that reach this node, those that go left."""
        return (2 * count * self.left_weight + self.weight) // (2 * self.weight)


class Mixture:
    """Draws from sources in proportion to whole `weights`, all positive.

    After any number of draws that is a multiple of the weights' sum, every source has had exactly
    its share; in between it is less than 2 draws away from it, with two sources 1/2 at most.
    Raises ValueError for no weights or one that is not positive.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        if not weights or min(weights) < 1:
            raise ValueError(f"a mixture needs weights above 0, not {list(weights)}")
        # Huffman's tree: two levels down a weight is at most a half, so roundings add up to < 2.
        queue: list[tuple[int, int, _Node | int]] = [
            (weight, source, source) for source, weight in enumerate(weights)
        ]
        heapq.heapify(queue)
        for number in range(len(weights), 2 * len(weights) - 1):
            first, second = heapq.heappop(queue), heapq.heappop(queue)
            weight = first[0] + second[0]
            node = _Node(second[2], first[2], second[0], weight)
            heapq.heappush(queue, (weight, number, node))
        self._root, self._num_sources = queue[0][2], len(weights)

    def draw(self, number: int) -> tuple[int, int]:
        """The source of draw `number` (0, 1, ...) and how many came from it before."""
        node = self._root
        while isinstance(node, _Node):
            left = node.left_count(number)
            if node.left_count(number + 1) > left:
                node, number = node.left, left
            else:
                node, number = node.right, number - left
        return node, number

    def counts(self, number: int) -> list[int]:
        """How many of the first `number` draws come from each source."""
        counts = [0] * self._num_sources
        reached = [(self._root, number)]
        while reached:
            node, count = reached.pop()
            if isinstance(node, _Node):
                left = node.left_count(count)
                reached += [(node.left, left), (node.right, count - left)]
            else:
                counts[node] = count
        return counts


def whole_weights(weights: Mapping[str, float]) -> dict[str, int]:
    """Declared weights as the smallest whole numbers in the same proportion: 0.1 is one tenth.

    A weight of 0 stays 0. Raises ValueError for one that is negative or not finite.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {name} is {weight}; give a number of 0 or more")
    exact = {name: Fraction(str(weight)) for name, weight in weights.items()}
    scale = math.lcm(*(weight.denominator for weight in exact.values()))
    whole = {name: int(weight * scale) for name, weight in exact.items()}
    divisor = math.gcd(*whole.values()) or 1
    return {name: weight // divisor for name, weight in whole.items()}
