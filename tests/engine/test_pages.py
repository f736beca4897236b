"""Pages: users, keys, and which goes first when there are no free ones."""

from __future__ import annotations

import random

import pytest

from puna.engine.pages import Pages, chain


def taken(pages: Pages, count: int) -> list[int]:
    found = [pages.take() for _ in range(count)]
    assert None not in found
    return [page for page in found if page is not None]


def test_pages_are_taken_once_and_come_back() -> None:
    pages = Pages(4, 16)
    table = taken(pages, 4)
    assert sorted(table) == [0, 1, 2, 3] and pages.take() is None
    pages.check([table])
    pages.release(table[:2])
    assert pages.num_available == 2
    pages.check([table[2:]])


def test_a_kept_page_is_found_until_it_is_needed() -> None:
    pages = Pages(3, 16)
    a, b, c = taken(pages, 3)
    pages.keep(a, b"first")
    pages.keep(b, b"second")
    pages.release([a, b, c])
    assert (pages.num_available, pages.find(b"first"), pages.find(b"second")) == (3, a, b)
    assert pages.take() == c  # the one that nobody can find goes first
    pages.share(a)
    assert pages.is_shared(a)
    assert pages.take() == b and pages.find(b"second") is None
    assert pages.take() is None and pages.find(b"first") == a
    pages.check([[a], [b], [c]])


def test_the_end_of_a_prompt_goes_before_its_begin() -> None:
    pages = Pages(3, 16)
    table = taken(pages, 3)
    for number, page in enumerate(table):
        pages.keep(page, bytes([number]))
    pages.release(table)
    assert taken(pages, 3) == table[::-1]


def test_what_was_left_longest_goes_first() -> None:
    pages = Pages(2, 16)
    a, b = taken(pages, 2)
    pages.keep(a, b"a")
    pages.keep(b, b"b")
    pages.release([a])
    pages.release([b])
    pages.share(a)
    pages.release([a])
    assert taken(pages, 2) == [b, a]


def test_the_same_content_is_kept_once() -> None:
    pages = Pages(2, 16)
    a, b = taken(pages, 2)
    pages.keep(a, b"same")
    pages.keep(b, b"same")
    assert pages.find(b"same") == a and not pages.is_shared(b)
    pages.release([a, b])
    pages.check([])


def test_a_key_stands_for_all_tokens_so_far_and_their_origin() -> None:
    keys = {
        chain(chain(name, first), second)
        for name in (b"0", b"1")
        for first in ([1, 2], [1, 3], [2, 1])
        for second in ([4], [4, 4])
    }
    assert len(keys) == 12


def test_check_sees_what_is_wrong() -> None:
    pages = Pages(3, 16)
    table = taken(pages, 2)
    for wrong in ([], [table[:1]], [table, table[:1]]):
        with pytest.raises(AssertionError):
            pages.check(wrong)


def test_random_use_leaves_nothing_behind() -> None:
    generator = random.Random(0)
    pages = Pages(20, 16)
    tables: list[list[int]] = []
    for _ in range(5000):
        action = generator.random()
        if action < 0.4 and (page := pages.take()) is not None:
            tables.append([page])
        elif action < 0.5 and tables:
            page = generator.choice(generator.choice(tables))
            pages.share(page)
            tables.append([page])
        elif action < 0.7 and tables:
            page = generator.choice(tables)[0]
            pages.keep(page, bytes([generator.randrange(30)]))
        elif action < 0.8 and (page := pages.find(bytes([generator.randrange(30)]))) is not None:
            pages.share(page)
            tables.append([page])
        elif tables:
            pages.release(tables.pop(generator.randrange(len(tables))))
        pages.check(tables)
    for table in tables:
        pages.release(table)
    pages.check([])
    assert pages.num_available == 20
