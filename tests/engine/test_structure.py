"""Structured output: what comes out fits, whatever the model would rather say."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from puna.engine.engine import Engine
from puna.engine.params import SamplingParams
from puna.engine.speculate import PromptLookup
from puna.tokenizer import Tokenizer
from tests.engine.fakes import HashRunner

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
LARK = 'start: "hay " number ("," number)* "."\nnumber: /[0-9]{1,3}/'


def outputs(tokenizer: Tokenizer, count: int = 8, **options: Any) -> list[Any]:
    engine = Engine(HashRunner(200, 16, context=400, vocab=tokenizer.vocab_size), tokenizer)
    params = SamplingParams(1.0, top_p=1.0, seed=1, n=count, max_tokens=300, **options)
    request = engine.add([1, 5], params, strip_space=True)
    while engine.has_work:
        engine.step()
    return request.result().outputs


def test_json_fits_its_schema(tokenizer: Tokenizer) -> None:
    for schema in (SCHEMA, json.dumps(SCHEMA)):
        found = [json.loads(output.text) for output in outputs(tokenizer, json_schema=schema)]
        for value in found:
            assert list(value) == ["name", "age", "tags"]
            assert len(value["name"]) <= 8 and 0 <= value["age"] <= 120
            assert set(value["tags"]) <= {"a", "b"} and len(value["tags"]) <= 3
        assert len({json.dumps(value) for value in found}) > 4


@pytest.mark.parametrize(
    "regex", [r"[a-z]{3,9} (dog|cat)s?", r" [0-9]+\.[0-9][0-9] €", r"(é|🦙){2,4}"]
)
def test_a_regex_matches(tokenizer: Tokenizer, regex: str) -> None:
    for output in outputs(tokenizer, regex=regex):
        assert re.fullmatch(regex, output.text), output.text
        assert output.finish_reason == "stop"


def test_a_grammar_is_kept_to(tokenizer: Tokenizer) -> None:
    for output in outputs(tokenizer, grammar=LARK):
        assert re.fullmatch(r"hay \d{1,3}(,\d{1,3})*\.", output.text)


def test_greedy_follows_the_mask_and_guesses_do_not_break_it(tokenizer: Tokenizer) -> None:
    params = SamplingParams(temperature=0, json_schema=SCHEMA, max_tokens=300)
    texts = []
    for drafter in (None, PromptLookup()):
        runner = HashRunner(200, 16, context=400, vocab=tokenizer.vocab_size)
        engine = Engine(runner, tokenizer, drafter=drafter)
        request = engine.add([1, 5, *tokenizer.encode('{"name": "a", "age": 3')], params)
        while engine.has_work:
            engine.step()
        texts.append(request.result().outputs[0].text)
    assert texts[0] == texts[1] and json.loads(texts[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regex": "("}, "regex: .*parse error"),
        ({"regex": r"[^\s\S]"}, "regex: there is no text that fits"),
        ({"json_schema": {"enum": []}}, "json_schema: Unsatisfiable"),
        ({"json_schema": "{"}, "json_schema: "),
        ({"grammar": "begin: 3"}, "grammar: "),
    ],
    ids=str,
)
def test_what_no_text_fits_is_refused_and_the_engine_runs_on(
    tokenizer: Tokenizer, options: Any, words: str
) -> None:
    engine = Engine(HashRunner(20, 16, vocab=tokenizer.vocab_size), tokenizer)
    with pytest.raises(ValueError, match=words) as caught:
        engine.add([1], SamplingParams(**options))
    assert "\n" not in str(caught.value)
    assert not engine.has_work
    engine.add([1], SamplingParams(max_tokens=3))
    while engine.has_work:
        engine.step()
    engine.pages.check([])


def test_only_one_may_be_asked_for() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        SamplingParams(regex="a", grammar="b")


def test_without_llguidance_it_is_said(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    engine = Engine(HashRunner(20, 16, vocab=tokenizer.vocab_size), tokenizer)
    with pytest.raises(ValueError, match=r"regex needs llguidance; install puna\[structured\]"):
        engine.add([1], SamplingParams(regex="a"))
