"""SentencePiece's compiled text normalisation, checked before the library walks it unchecked.

u32 bytes of the trie; the trie, a Darts-clone double array of u32 units; the replacements, each
ended by a zero byte. sentencepiece's normalizer.cc and darts.h.
"""

from __future__ import annotations

import numpy as np

_BLOCK = 256  # units; a step by any byte stays in the block that its unit points into


def charsmap_problem(data: bytes) -> str:
    """What is wrong with a map that is not empty; the empty text if no text can lead astray."""
    trie_bytes = int.from_bytes(data[:4], "little")
    if trie_bytes % (4 * _BLOCK) or not 0 < trie_bytes < len(data) - 4:
        return f"a trie of {trie_bytes} bytes in a map of {len(data)}"
    if data[-1] != 0:
        return "its last replacement has no end"
    units = np.frombuffer(data, "<u4", trie_bytes // 4, 4)
    # A unit with its highest bit set is a leaf's value, which no step goes on from.
    at = np.flatnonzero(units >> 31 == 0)
    inner = units[at]
    offset = (inner >> 10).astype(np.int64) << ((inner & 0x200) >> 6)
    to = at ^ offset
    if (to >= len(units)).any():
        return "a step leaves its trie"
    leaves = units[to[inner >> 8 & 1 == 1]] & 0x7FFFFFFF
    if (leaves >= len(data) - 4 - trie_bytes).any():
        return "a replacement stands after its end"
    return ""
