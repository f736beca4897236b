"""Stop strings, however the text is cut into pieces."""

from __future__ import annotations

import random

import pytest

from puna.engine.stopping import StopStrings


def streamed(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    stopping = StopStrings(stops)
    out = []
    for piece in pieces:
        out.append(stopping.push(piece))
        if stopping.stop is not None:
            return out, True
    return [*out, stopping.finish()], False


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop that ends first cuts the text where it begins; the longer one of two."""
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return (text[: min(found)[1]], True) if found else (text, False)


@pytest.mark.parametrize(
    ("pieces", "stops", "out", "stopped"),
    [
        (["a lla", "ma."], [], ["a lla", "ma.", ""], False),
        (["a b", "c d"], ["bc"], ["a ", ""], True),
        (["a b", "d"], ["bc"], ["a ", "bd", ""], False),
        (["a b"], ["bc"], ["a ", "b"], False),
        (["\n", "\n"], ["\n\n"], ["", ""], True),
        (["aab"], ["ab"], ["a"], True),
        (["a", "a", "b"], ["ab"], ["", "a", ""], True),
        (["xUser", ": hi"], ["User:", "Us"], ["x"], True),
        (["END"], ["END"], [""], True),
    ],
)
def test_what_comes_out_piece_by_piece(
    pieces: list[str], stops: list[str], out: list[str], stopped: bool
) -> None:
    assert streamed(pieces, stops) == (out, stopped)


def test_the_outcome_does_not_depend_on_the_cuts() -> None:
    generator = random.Random(5)
    stopped_often = 0
    for _ in range(5000):
        text = "".join(generator.choices("abc", k=generator.randrange(14)))
        stops = [
            "".join(generator.choices("abc", k=generator.randrange(1, 6)))
            for _ in range(generator.randrange(4))
        ]
        cuts = sorted(generator.choices(range(len(text) + 1), k=generator.randrange(6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        out, stopped = streamed(pieces, stops)
        assert ("".join(out), stopped) == expected(text, stops), (pieces, stops)
        stopped_often += stopped
    assert 1000 < stopped_often < 4000


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])
