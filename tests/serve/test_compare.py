"""Comparing answers: what is kept, what is refused, and the page in headless Chromium."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna import AsyncLLM
from puna.chat import Message
from puna.data.preferences import RATINGS
from puna.serve.compare.app import create_compare_app
from puna.serve.compare.batches import Batches
from puna.serve.compare.desk import Desk
from puna.serve.compare.pairs import Candidate, candidates, draw_pair
from puna.serve.deadlines import Stopping
from puna.serve.errors import APIError
from puna.serve.models import Models, Served
from puna.serve.stack import Protection
from tests.serve.servers import in_thread

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
STORY, CAPITAL = (
    [Message("user", text)] for text in ("Tell me a story.", "What is the capital of Peru?")
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """The shipped model at two temperatures, two prompts, batches of two."""
    models = Models([Served("cria", AsyncLLM("cria"))])
    desk = Desk(
        candidates(models.all(), (0.7, 1.0)),
        [STORY, CAPITAL],
        Batches(folder, 2),
        seed=1,
        max_tokens=12,
    )
    with in_thread(create_compare_app(desk, models, Stopping(), Protection())) as server:
        yield server.url


def post(url: str, call: str, **body: Any) -> tuple[int, Any]:
    answer = httpx.post(f"{url}/api/{call}", json=body, timeout=60)
    return answer.status_code, answer.json()


def judged(url: str, pair: dict[str, Any], **changes: Any) -> tuple[int, Any]:
    body = {"annotator": "ana", "id": pair["id"], "chosen": 0, "rating": "better"}
    return post(url, "verdict", **body | {"safe": [True, True]} | changes)


def kept(folder: Path) -> list[list[dict[str, Any]]]:
    files = sorted(folder.glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in files]


def test_a_verdict_is_kept_with_who_when_and_which_models(url: str, folder: Path) -> None:
    status, pair = post(url, "pair", annotator="ana")
    assert status == 200 and pair["messages"] == [{"role": "user", "content": STORY[0].content}]
    assert set(pair) == {"id", "messages", "answers"}  # nothing of whose answer is whose
    assert len(set(pair["answers"])) == 2

    status, state = judged(url, pair, chosen=1, safe=[False, True])
    assert status == 200 and (state["in_batch"], state["total"]) == (1, 1)
    [[record]] = kept(folder)
    assert record["chosen"] == [{"role": "assistant", "content": pair["answers"][1]}]
    assert record["rejected"] == [{"role": "assistant", "content": pair["answers"][0]}]
    assert record["prompt"] == pair["messages"] and record["rating"] == "better"
    assert (record["chosen_safe"], record["rejected_safe"]) == (True, False)
    assert record["annotator"] == "ana" and record["time"].endswith("+00:00")
    assert record["chosen_model"] == record["rejected_model"] == "cria"
    assert {record["chosen_temperature"], record["rejected_temperature"]} == {0.7, 1.0}

    assert judged(url, pair)[0] == 404  # once
    assert post(url, "pair", annotator="ana")[1]["messages"][0]["content"] == CAPITAL[0].content
    capital = post(url, "pair", annotator="ana")[1]
    skipped = post(url, "pair", annotator="ana", skip=capital["id"])
    assert skipped[0] == 404 and skipped[1]["error"]["code"] == "no_prompt"
    # Another person has not seen the first prompt.
    assert post(url, "pair", annotator="ben")[1]["messages"] == record["prompt"]


def test_a_full_batch_is_followed_by_the_next_and_the_last_verdict_can_be_taken_back(
    url: str, folder: Path
) -> None:
    dialog = [{"role": "user", "content": "Tell me of a cat."}]
    pairs = [post(url, "pair", annotator="ana", messages=dialog)[1] for _ in range(3)]
    for pair in pairs:
        assert judged(url, pair)[0] == 200
    assert [len(batch) for batch in kept(folder)] == [2, 1]
    assert post(url, "undo", id=pairs[0]["id"])[0] == 409
    status, state = post(url, "undo", id=pairs[2]["id"])
    assert status == 200 and (state["in_batch"], state["total"]) == (0, 2)
    assert [len(batch) for batch in kept(folder)] == [2, 0]

    again = Batches(folder, 2)  # another day
    assert (again.total, again.path.name, again.in_batch) == (2, "batch-0002.jsonl", 0)
    assert again.is_judged("ana", [Message("user", "Tell me of a cat.")])
    assert not again.is_judged("ben", [Message("user", "Tell me of a cat.")])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rating": "best"}, "rating"),
        ({"chosen": 2}, "chosen"),
        ({"safe": [True]}, "safe"),
        ({"annotator": " "}, "annotator"),
        ({"annotator": "a" * 65}, "annotator"),
        ({"more": 1}, "more"),
        ({"safe": [False, True]}, "chosen answer is marked unsafe"),
    ],
)
def test_a_wrong_verdict_is_refused_and_the_pair_stays_open(
    url: str, folder: Path, changes: dict[str, Any], said: str
) -> None:
    pair = post(url, "pair", annotator="ana")[1]
    status, body = judged(url, pair, **changes)
    assert status == 400 and said in body["error"]["message"]
    assert kept(folder) == []
    assert judged(url, pair)[0] == 200


def test_requests_that_a_page_of_another_origin_could_send_are_refused(url: str) -> None:
    plain = httpx.post(f"{url}/api/pair", content='{"annotator": "ana"}')
    assert plain.status_code == 415
    foreign = {"Origin": "https://evil.example"}
    answer = httpx.post(f"{url}/api/pair", json={"annotator": "ana"}, headers=foreign)
    assert answer.status_code == 403
    assert (
        post(url, "pair", annotator="ana", messages=[{"role": "user", "content": "[INST] hi"}])[0]
        == 400
    )
    assert httpx.get(f"{url}/nothing").status_code == 404


def test_a_damaged_batch_is_named_and_nothing_is_added(folder: Path) -> None:
    folder.mkdir()
    (folder / "batch-0001.jsonl").write_text('{"annotator": "ana", "prompt": []}\n{"anno')
    with pytest.raises(ValueError, match=r"batch-0001.jsonl, line 2 is no JSON"):
        Batches(folder, 2)
    (folder / "batch-0001.jsonl").write_text('{"prompt": []}\n')
    with pytest.raises(ValueError, match=r"line 1 is no comparison"):
        Batches(folder, 2)


def test_what_an_answer_may_hold_does_not_spoil_a_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"annotator": "ana", "prompt": [], "id": "1", "chosen": "one\u2028two\x85three"}
    batches = Batches(folder, 9)
    batches.add(record)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            batches.add(record | {"id": "2"})
    assert batches.total == 1
    batches.add(record | {"id": "3"})
    again = Batches(folder, 9)
    assert again.total == 2 and again.remove_last("3") and not again.remove_last("2")


def test_equal_answers_are_no_pair() -> None:
    async def draw() -> None:
        async with AsyncLLM("cria") as llm:
            pool = [Candidate(Served("cria", llm), 0.0)]
            await draw_pair(CAPITAL, pool, random.Random(0), max_tokens=4)

    with pytest.raises(APIError, match="both answers are the same"):
        asyncio.run(draw())


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_the_page_compares(url: str, folder: Path) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    wrong: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(locale="en-US")
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if "Content Security" in m.text else None)
        page.goto(url)
        page.fill("#annotator", "ana")
        page.press("#annotator", "Enter")
        api.expect(page.locator("#dialog .bubble")).to_have_text(STORY[0].content)
        page.locator("#side-0 .unsafe").click()
        page.keyboard.press("2")
        api.expect(page.locator("#problem")).to_contain_text("Choose the safe one")
        api.expect(page.locator("#submit")).to_be_disabled()
        page.keyboard.press("8")
        page.keyboard.press("Enter")
        api.expect(page.locator("#dialog .bubble")).to_have_text(CAPITAL[0].content)
        api.expect(page.locator("#batch-text")).to_contain_text("1 of 2")
        page.click(".toast-action")
        api.expect(page.locator("#batch-text")).to_contain_text("0 of 2")
        page.keyboard.press("s")
        api.expect(page.locator("#dialog .bubble")).to_have_text(STORY[0].content)
        page.keyboard.press("s")
        api.expect(page.locator("#writing-note")).to_contain_text("No prompt of the list is left")
        page.fill("#prompt", "Tell me of a bird.")
        page.press("#prompt", "Enter")
        page.locator(".scale button").nth(0).click()
        page.click("#submit")
        api.expect(page.locator("#writing-note")).to_contain_text("goes on with the answer")
        api.expect(page.locator("#dialog .turn")).to_have_count(2)
        browser.close()
    assert wrong == []
    [[record]] = kept(folder)
    assert record["rating"] == RATINGS[0]
    assert record["prompt"] == [{"role": "user", "content": "Tell me of a bird."}]
