"""UTF-8, against Python's own decoder."""

from __future__ import annotations

import random

import pytest

from puna.formats.text import first_bad_byte


@pytest.mark.parametrize("seed", range(40))
def test_the_first_bad_byte_is_where_python_says(seed: int) -> None:
    generator = random.Random(seed)
    letters = [*"abc", "é", "羊", "🦙"]
    text = "".join(generator.choice(letters) for _ in range(generator.choice((0, 5, 9000, 30_000))))
    raw = bytearray(text.encode())
    assert first_bad_byte(bytes(raw)) is None
    for _ in range(20):
        damaged = bytearray(raw)
        if damaged and generator.random() < 0.7:
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        del damaged[generator.randrange(len(damaged) + 1) :]
        try:
            bytes(damaged).decode()
            expected = None
        except UnicodeDecodeError as error:
            expected = error.start
        assert first_bad_byte(memoryview(damaged)) == expected
