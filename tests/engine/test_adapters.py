"""Adapters in the engine: each request gives what it gives alone, whatever is loaded meanwhile."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puna import LLM, AsyncLLM, SamplingParams
from puna.engine.batch import Batch
from puna.engine.engine import Engine
from puna.engine.request import Request
from puna.engine.sampling import choose
from puna.formats import open_checkpoint
from puna.formats.adapters import open_adapter
from puna.formats.checkpoint import Checkpoint, LazyTensor
from puna.formats.errors import FormatError
from puna.hub import cache
from puna.hub.locate import shipped_path
from puna.tokenizer import Tokenizer
from tests.engine.fakes import SHIFT, HashRunner, logits_after, mark
from tests.engine.test_engine import engine_of, random_request, run, tokens_of
from tests.formats.test_lora import EMBEDDING, MATRICES, make_pairs, write_ggla, write_peft

GREEDY = SamplingParams(temperature=0, max_tokens=12)
MARKS = {None: 0, "one": 1, "two": 2}


def shifted(tokenizer: Tokenizer, request: Request, shift: int, index: int = 0) -> list[int]:
    """What a `HashRunner` whose tokens are all shifted says: a plain loop, without pages."""
    prompt, params, output = request.prompt_token_ids, request.params, list[int]()
    ends = {*params.stop_ids, *([] if params.ignore_eos else [tokenizer.eos_id])}
    while len(output) < (params.max_tokens or 0) and not ends & {*output[-1:]}:
        tokens = np.array(prompt + output, np.int32) + shift
        row = logits_after(tokens, tokenizer.vocab_size + 12)[: tokenizer.vocab_size]
        output.append(choose(row, params, prompt, output, seed=request.seed, sample=index))
    return output


@pytest.mark.parametrize("num_pages", [16, 100])
def test_adapters_in_one_batch_give_what_each_gives_alone(
    tokenizer: Tokenizer, num_pages: int
) -> None:
    generator = random.Random(5)
    engine = engine_of(tokenizer, num_pages=num_pages, max_rows=20, max_sequences=6)
    for name, number in MARKS.items():
        if name is not None:
            engine.load_adapter(name, mark(number))
    requests = []
    for _ in range(60):
        ids, params = random_request(generator, tokenizer.vocab_size)
        name = generator.choice(list(MARKS))
        requests.append(engine.add(ids, params, adapter=name))
        engine.step()
    run(engine)
    for request in requests:
        for index, tokens in enumerate(tokens_of(request)):
            shift = MARKS[request.adapter] * SHIFT
            assert tokens == shifted(tokenizer, request, shift, index)


def test_pages_of_one_adapter_are_never_anothers(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, num_pages=100, max_rows=64, max_sequences=8)
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    params, prompt = SamplingParams(temperature=0, max_tokens=1), list(range(3, 20))

    def rows_run(adapter: str | None, number: int) -> int:
        request = engine.add(prompt, params, adapter=adapter)
        run(engine)
        assert tokens_of(request) == [shifted(tokenizer, request, number * SHIFT)]
        return runner.num_rows[-1]

    engine.load_adapter("one", mark(1))
    engine.load_adapter("two", mark(2))
    for name, number in MARKS.items():
        assert rows_run(name, number) == 17
    for name, number in MARKS.items():
        assert rows_run(name, number) == 1
    # Another one under the same name, in the same slot; the others' pages stay good.
    engine.unload_adapter("one")
    engine.load_adapter("one", mark(3))
    assert rows_run("one", 3) == 17 and rows_run("one", 3) == 1
    assert rows_run("two", 2) == 1 and rows_run(None, 0) == 1


def test_an_adapter_in_use_is_not_unloaded(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer, max_rows=20, max_sequences=2)
    for number, name in enumerate(("one", "two")):
        engine.load_adapter(name, mark(number + 1))
    long = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    running = [engine.add([1, 5, 6], long, adapter="one") for _ in range(4)]  # two must wait
    for _ in range(3):
        engine.step()
    with pytest.raises(ValueError, match="'one' is in use by 4 of the requests"):
        engine.unload_adapter("one")
    engine.unload_adapter("two")
    for request in running[1:]:
        engine.cancel(request)
    with pytest.raises(ValueError, match="'one' is in use by 1 of the requests"):
        engine.unload_adapter("one")
    engine.load_adapter("three", mark(3))
    run(engine)
    assert tokens_of(running[0]) == [shifted(tokenizer, running[0], SHIFT)]
    engine.unload_adapter("one")
    assert engine.adapters == ["three"]
    for name in ("one", "two"):
        with pytest.raises(ValueError, match=f"no adapter '{name}'; loaded: 'three'"):
            engine.add([1, 5], long, adapter=name)
    with pytest.raises(ValueError, match="an adapter 'three' already; unload it first"):
        engine.load_adapter("three", mark(4))
    assert not engine.has_work


def norm_of(engine: Engine, value: float) -> dict[str, LazyTensor]:
    raw = np.full(engine.runner.config.dim, value, np.float32)
    return {"norm.weight": LazyTensor(raw.shape, "f32", lambda: raw.view(np.uint8))}


def test_update_starts_everything_anew(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    runner = engine.runner
    assert isinstance(runner, HashRunner)
    engine.load_adapter("one", mark(1))
    long = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    requests = [engine.add([1, 5, 6, 7, 8], long, adapter=name) for name in (None, "one")]
    for _ in range(5):
        engine.step()
    before = [tokens_of(request)[0][:] for request in requests]
    engine.update(norm_of(engine, 7000))
    run(engine)
    for request, old in zip(requests, before, strict=True):
        assert 0 < len(old) < 16
        # The tokens that were there go on as a prompt to the new weights.
        shift = 7000 + MARKS[request.adapter] * SHIFT
        rest = replace(long, max_tokens=16 - len(old))
        asked = Request(None, request.prompt_token_ids + old, rest, 0, None)
        assert tokens_of(request) == [old + shifted(tokenizer, asked, shift)]
        # What it left in pages counts as the new weights'.
        engine.add(
            request.prompt_token_ids + old, replace(long, max_tokens=1), adapter=request.adapter
        )
        run(engine)
        assert runner.num_rows[-1] <= runner.page_size


def test_an_update_that_does_not_fit_changes_nothing(tokenizer: Tokenizer) -> None:
    engine = engine_of(tokenizer)
    (norm,) = norm_of(engine, 7).values()
    for weights, words in (
        ({"norms.weight": norm}, "the model has no such tensor"),
        ({"output.weight": norm}, r"shape \(32,\) is no update: the model has \(\d+, 32\) there"),
    ):
        with pytest.raises(ValueError, match=words):
            engine.update(weights)
    request = engine.add([1, 5, 6], GREEDY)
    run(engine)
    assert tokens_of(request) == [shifted(tokenizer, request, 0)]


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    return open_checkpoint(shipped_path("cria"))


@pytest.fixture(scope="module")
def folders(base: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of different ranks, scales and matrices."""
    root = tmp_path_factory.mktemp("adapters")
    found = {}
    for rank, (name, names) in enumerate(
        {"a": MATRICES, "b": MATRICES[::2], "c": MATRICES[:4]}.items(), start=4
    ):
        pairs = {
            key: (a / a.shape[1] ** 0.5, b * np.float32(0.02))
            for key, (a, b) in make_pairs(base, names, rank).items()
        }
        found[name] = write_peft(root / name, pairs, lora_alpha=6 * rank)
    return found


@pytest.fixture(scope="module")
def llm(base: Checkpoint, folders: dict[str, Path]) -> LLM:
    return LLM(base, adapters=folders)


PROMPT = "Once upon a time there was a little llama"


def texts(llm: LLM, *names: str | None, **options: Any) -> list[str]:
    results = llm.generate([PROMPT] * len(names), GREEDY, adapter=names, **options)
    return [result.outputs[0].text for result in results]


def test_requests_name_their_adapter(llm: LLM, folders: dict[str, Path]) -> None:
    names = ("a", None, "b", "c", "a")
    together = texts(llm, *names)
    assert len(set(together)) == 4 and together[0] == together[4]
    for name, text in zip(names, together, strict=True):
        (alone,) = llm.generate(PROMPT, GREEDY, adapter=name)
        assert alone.outputs[0].text == text
        streamed = llm.stream(PROMPT, GREEDY, adapter=name)
        assert "".join(delta.text for delta in streamed) == text
        fresh = LLM("cria", adapters={} if name is None else {"x": folders[name]})
        assert texts(fresh, name and "x") == [text]
    dialog = [{"role": "user", "content": "Tell me a story."}]
    answers = llm.chat([dialog, dialog], GREEDY, adapter=["a", None])
    assert answers[0].outputs[0].text != answers[1].outputs[0].text
    assert answers[1].outputs == llm.chat(dialog, GREEDY)[0].outputs
    with pytest.raises(ValueError, match="1 prompts and 2 adapters"):
        llm.generate(PROMPT, GREEDY, adapter=["a", "b"])


def test_an_unknown_adapter_is_said_and_others_go_on(llm: LLM) -> None:
    words = "no adapter 'd'; loaded: 'a', 'b', 'c'"
    for ask in (
        lambda: llm.generate([PROMPT, PROMPT], GREEDY, adapter=["a", "d"]),
        lambda: llm.stream(PROMPT, GREEDY, adapter="d"),
        lambda: llm.chat([{"role": "user", "content": "Hi"}], GREEDY, adapter="d"),
        lambda: llm.unload_adapter("d"),
    ):
        with pytest.raises(ValueError, match=words):
            ask()
    assert not llm.engine.has_work and texts(llm, "a")
    with pytest.raises(ValueError, match="no adapter 'a'; loaded: none"):
        LLM("cria").generate(PROMPT, GREEDY, adapter="a")


def test_several_in_one_are_their_sum(llm: LLM, folders: dict[str, Path]) -> None:
    a, b = open_adapter(folders["a"]), open_adapter(folders["b"])
    llm.load_adapter("sum", [a, b])
    llm.load_adapter("only b", [a.scaled(0), folders["b"]])
    llm.load_adapter("none", [a, a.scaled(-0.5), a.scaled(-0.5)])
    found = texts(llm, "sum", "only b", "none", "b", None)
    assert found[1] == found[3] != found[0] and found[2] == found[4]
    for name in ("sum", "only b", "none"):
        llm.unload_adapter(name)


def test_adapters_that_do_not_fit_are_refused(llm: LLM, base: Checkpoint, tmp_path: Path) -> None:
    pairs = make_pairs(base, (*MATRICES[:1], EMBEDDING, "layers.0.ffn_norm.weight"))
    wide = {MATRICES[0]: (np.ones((3, 77), np.float32), np.ones((256, 3), np.float32))}
    beyond = {"layers.99.attention.wq.weight": pairs[MATRICES[0]]}
    bad = {MATRICES[0]: (np.full((3, 256), np.nan, np.float32), pairs[MATRICES[0]][1])}
    for number, (some, words) in enumerate(
        (
            (wide, r"is for layers\.0\.attention\.wq\.weight of shape \(256, 77\), in .* it has"),
            (beyond, r"changes layers\.99\..*, which .* has not"),
            ({EMBEDDING: pairs[EMBEDDING]}, "which is also the output head"),
            ({key: pairs[key] for key in list(pairs)[2:]}, "norms can only be merged"),
            (bad, "no finite number"),
        )
    ):
        path = write_ggla(tmp_path / f"{number}.bin", some)
        with pytest.raises(FormatError, match=words) as caught:
            llm.load_adapter("bad", path)
        assert str(path) in str(caught.value)
        with pytest.raises(FormatError, match=words):
            LLM(base, adapters={"bad": path})
    with pytest.raises(ValueError, match="no such file or folder: nothing"):
        llm.load_adapter("bad", "nothing")
    with pytest.raises(ValueError, match="puna pull someone/lora downloads it"):
        llm.load_adapter("bad", "someone/lora")
    assert llm.adapters == ["a", "b", "c"] and texts(llm, "a")


def test_a_hubs_name(
    llm: LLM, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "cache_folder", lambda: tmp_path)
    repository, commit = tmp_path / "models--someone--lora", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / commit).symlink_to(folders["a"])
    llm.load_adapter("hub", "someone/lora")
    assert texts(llm, "hub") == texts(llm, "a")
    llm.unload_adapter("hub")


@pytest.mark.parametrize("draft", ["cria", "prompt-lookup"])
def test_speculation_changes_no_token(llm: LLM, folders: dict[str, Path], draft: str) -> None:
    guessing = LLM("cria", draft=draft, adapters=folders)
    names = ("a", "b", None)
    assert texts(guessing, *names) == texts(llm, *names)
    sampled = SamplingParams(seed=3, max_tokens=30)
    for name in names:
        expected = llm.generate(PROMPT, sampled, adapter=name)
        assert guessing.generate(PROMPT, sampled, adapter=name) == expected
    assert guessing.engine.num_accepted > 0


def slowly(model: AsyncLLM) -> threading.Event:
    """Steps take long until the event is set, so that what is asked meanwhile comes in time."""
    hurry, runner = threading.Event(), model.llm.engine.runner
    step = runner.step

    def late(batch: Batch) -> Any:
        hurry.wait(0.05)
        return step(batch)

    runner.step = late  # type: ignore[method-assign]
    return hurry


def test_adapters_come_and_go_while_others_run(folders: dict[str, Path], llm: LLM) -> None:
    long = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    expected = {
        name: llm.generate(PROMPT, long, adapter=name)[0].outputs[0].token_ids
        for name in ("a", "b", None)
    }

    async def ask() -> None:
        async with AsyncLLM("cria", adapters={"x": folders["a"]}) as model:
            begun, hurry = asyncio.Event(), slowly(model)

            async def talk(adapter: str | None) -> list[int]:
                found: list[int] = []
                async for delta in model.stream(PROMPT, long, adapter=adapter):
                    found += delta.token_ids
                    begun.set()
                return found

            running = [asyncio.create_task(talk(name)) for name in ("x", None)]
            await begun.wait()
            await model.load_adapter("y", folders["b"])
            with pytest.raises(ValueError, match="in use by 1 of"):
                await model.unload_adapter("x")
            assert not any(task.done() for task in running)
            hurry.set()
            assert await talk("y") == expected["b"]
            assert [await task for task in running] == [expected["a"], expected[None]]
            # The same name, another adapter.
            await model.unload_adapter("x")
            await model.load_adapter("x", folders["b"])
            assert await talk("x") == expected["b"]
            with pytest.raises(ValueError, match="no adapter 'z'; loaded: 'y', 'x'"):
                await model.generate(PROMPT, long, adapter="z")
            with pytest.raises(ValueError, match="already"):
                await model.load_adapter("x", folders["b"])
            assert model.llm.adapters == ["y", "x"]
        with pytest.raises(ValueError, match="was closed"):
            await model.load_adapter("z", folders["b"])

    asyncio.run(ask())


def changed(base: Checkpoint, factor: float) -> dict[str, LazyTensor]:
    name = "layers.2.feed_forward.w2.weight"
    matrix = np.float32(factor) * base.tensors[name].read_float32()
    return {name: LazyTensor(matrix.shape, "f32", lambda: matrix.view(np.uint8))}


def test_update_of_a_model_that_answers(base: Checkpoint, folders: dict[str, Path]) -> None:
    llm, weights = LLM(base, adapters={"a": folders["a"]}), changed(base, -3)
    before = texts(llm, "a", None)
    llm.update(weights)
    after = texts(llm, "a", None)
    assert set(before).isdisjoint(after)
    other = replace(base, tensors={**base.tensors, **weights})
    assert texts(LLM(other, adapters={"a": folders["a"]}), "a", None) == after
    llm.update({name: base.tensors[name] for name in weights})
    assert texts(llm, "a", None) == before
    with pytest.raises(ValueError, match="is no update"):
        llm.update({"output.weight": base.tensors["norm.weight"]})


def test_update_while_others_run(base: Checkpoint) -> None:
    long = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)

    async def ask() -> None:
        async with AsyncLLM(base) as model:
            tokens: list[int] = []
            hurry = slowly(model)
            async for delta in model.stream(PROMPT, long):
                if not tokens:
                    await model.update(changed(base, -3))
                    hurry.set()
                tokens += delta.token_ids
            found.append(tokens)

    found: list[list[int]] = []
    asyncio.run(ask())
    expected = [
        LLM(replace(base, tensors={**base.tensors, **changed(base, factor)}))
        .generate(PROMPT, long)[0]
        .outputs[0]
        .token_ids
        for factor in (1, -3)
    ]
    assert len(found[0]) == 60 and found[0] not in expected
    assert found[0][0] == expected[0][0]


def test_on_torch_too(
    llm: LLM, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, base: Checkpoint
) -> None:
    names = ("a", None, "b")
    native_texts = texts(LLM("cria", dtype="fp32", adapters=folders), *names)
    monkeypatch.setattr("puna.kernels.native.library", lambda: None)
    on_torch = LLM("cria", dtype="fp32", adapters=folders)
    assert texts(on_torch, *names) == native_texts
    on_torch.update(changed(base, -3))
    assert texts(on_torch, *names) != native_texts
