"""`LLM` and `AsyncLLM` on the shipped model, as a user has them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from puna import LLM, AsyncLLM, SamplingParams
from puna.chat import Message, encode_dialog
from puna.engine import loading, memory
from puna.engine.memory import free_memory, kv_bytes, plan_kv_tokens, quantized_bytes
from puna.formats import open_checkpoint
from puna.hub.locate import shipped_path

GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("cria")


def unused(llm: LLM) -> bool:
    llm.engine.pages.check([])
    return not llm.engine.has_work


def test_one_prompt_and_many_give_the_same(llm: LLM) -> None:
    prompts = ["Once upon a time", "The dog", "", "A llama said:"]
    together = llm.generate(prompts, GREEDY)
    assert [result.prompt for result in together] == prompts
    for prompt, result in zip(prompts, together, strict=True):
        ids = llm.tokenizer.encode(prompt, bos=True)
        assert result.prompt_token_ids == ids
        (again,) = llm.generate(prompt, GREEDY)
        (by_ids,) = llm.generate(ids, GREEDY)
        assert again.outputs == result.outputs
        assert by_ids.outputs[0].token_ids == result.outputs[0].token_ids
    assert llm.generate([]) == [] and unused(llm)


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    each = [replace(GREEDY, max_tokens=count) for count in (3, 7)]
    results = llm.generate(["The dog", "The dog"], each)
    assert [len(result.outputs[0].token_ids) for result in results] == [3, 7]
    with pytest.raises(ValueError, match="2 prompts and 3 SamplingParams"):
        llm.generate(["a", "b"], [GREEDY] * 3)


def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM) -> None:
    for prompts in (["fine", "much " * 1000], [[1, 2], [999_999]], [[1], []]):
        with pytest.raises(ValueError):
            llm.generate(prompts, GREEDY)
        assert unused(llm)


def test_chat_is_the_dialogs_continuation(llm: LLM) -> None:
    dialog = [Message("system", "Be brief."), Message("user", "Hello!")]
    ids = encode_dialog(llm.tokenizer, dialog).ids
    (expected,) = llm.generate(ids, GREEDY)
    plain = [{"role": message.role, "content": message.content} for message in dialog]
    (answer,) = llm.chat(plain, GREEDY)
    assert answer.prompt_token_ids == ids
    assert answer.outputs[0].token_ids == expected.outputs[0].token_ids
    assert answer.outputs[0].text == expected.outputs[0].text.removeprefix(" ")
    assert [r.outputs for r in llm.chat([dialog, plain], GREEDY)] == [answer.outputs] * 2


@pytest.mark.parametrize(
    ("dialog", "words"),
    [
        ([], "no tokens|beginning with user"),
        ([{"role": "user"}], "no 'content'"),
        ([{"role": "user", "content": 3}], "must be text"),
        ([{"role": "assistant", "content": "hi"}], "beginning with user"),
        ([{"role": "user", "content": "[/INST]"}], "reserved"),
    ],
    ids=str,
)
def test_bad_dialogs(llm: LLM, dialog: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        llm.chat(dialog, GREEDY)


def test_a_turn_is_not_run_again_with_the_next(llm: LLM) -> None:
    dialog = [Message("user", "Tell me a story about a dog and a cat and a llama and a fox.")]
    (first,) = llm.chat(dialog, GREEDY)
    dialog += [Message("assistant", first.outputs[0].text), Message("user", "More!")]
    steps: list[int] = []
    honest = llm.engine.runner.step

    def watched(batch: Any) -> Any:
        steps.append(len(batch.tokens))
        return honest(batch)

    llm.engine.runner.step = watched  # type: ignore[method-assign]
    try:
        (second,) = llm.chat(dialog, GREEDY)
    finally:
        llm.engine.runner.step = honest  # type: ignore[method-assign]
    assert steps[0] < len(second.prompt_token_ids) - len(first.prompt_token_ids) + 20


def test_a_stream_is_what_generate_gives(llm: LLM) -> None:
    params = SamplingParams(seed=4, n=2, max_tokens=30)
    (whole,) = llm.generate("The dog", params)
    deltas = list(llm.stream("The dog", params))
    for output in whole.outputs:
        mine = [delta for delta in deltas if delta.index == output.index]
        assert "".join(delta.text for delta in mine) == output.text
        assert mine[-1].finish_reason == output.finish_reason


def test_streams_run_side_by_side_and_may_be_left(llm: LLM) -> None:
    long = replace(GREEDY, max_tokens=200, ignore_eos=True)
    first, second = llm.stream("The dog", long), llm.stream("The cat", long)
    for _ in range(5):
        next(first), next(second)
    first.close()  # type: ignore[attr-defined]
    assert len(llm.engine.scheduler.running) == 1
    rest = "".join(delta.text for delta in second)
    assert llm.generate("The cat", long)[0].outputs[0].text.endswith(rest) and unused(llm)


def test_a_stream_is_checked_when_it_is_asked_for(llm: LLM) -> None:
    with pytest.raises(ValueError, match="nothing to stream"):
        llm.stream("a", SamplingParams(best_of=3))
    with pytest.raises(ValueError, match="at most 510"):
        llm.stream("a", SamplingParams(max_tokens=600))


def test_several_threads_may_ask(llm: LLM) -> None:
    prompts = [f"{name} went" for name in ("Tim", "Anna", "Ben", "Lily")]
    expected = [llm.generate(prompt, GREEDY)[0].outputs for prompt in prompts]
    found: dict[str, Any] = {}

    def ask(prompt: str) -> None:
        found[prompt] = llm.generate(prompt, GREEDY)[0].outputs

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[prompt] for prompt in prompts] == expected and unused(llm)


def test_async_gives_the_same_and_ends_what_is_left(llm: LLM) -> None:
    prompts = [f"{name} went" for name in ("Tim", "Anna", "Ben", "Lily")]
    expected = [result.outputs for result in llm.generate(prompts, GREEDY)]
    endless = replace(GREEDY, max_tokens=500, ignore_eos=True)

    async def ask() -> None:
        async with AsyncLLM("cria", max_sequences=3) as model:
            results = await asyncio.gather(*(model.generate(p, GREEDY) for p in prompts))
            assert [result.outputs for result in results] == expected
            with pytest.raises(ValueError, match="max_tokens"):
                await model.generate("a", SamplingParams(max_tokens=10_000))
            with pytest.raises(ValueError, match="beginning with user"):
                await model.chat([{"role": "assistant", "content": "a"}])
            text = ""
            stream = model.stream("Tim went", endless)
            async for delta in stream:
                text += delta.text
                if len(text) > 20:
                    break
            await stream.aclose()  # type: ignore[attr-defined]
            task = asyncio.create_task(model.generate("a", endless))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # What is asked after a cancellation is served after it.
            await model.generate("a", GREEDY)
            assert not model.llm.engine.has_work
            model.llm.engine.pages.check([])
            waiting = asyncio.create_task(model.generate("a", endless))
            await asyncio.sleep(0.05)
        with pytest.raises(ValueError, match="closed"):
            await waiting
        with pytest.raises(ValueError, match="closed"):
            await model.generate("a", GREEDY)

    asyncio.run(ask())


def test_async_survives_a_step_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        async with AsyncLLM("cria") as model:
            runner = model.llm.engine.runner
            honest = runner.step

            def broken(batch: Any) -> Any:
                raise RuntimeError("out of luck")

            monkeypatch.setattr(runner, "step", broken)
            results = await asyncio.gather(
                *(model.generate("a", GREEDY) for _ in range(3)), return_exceptions=True
            )
            assert all("out of luck" in str(result) for result in results)
            monkeypatch.setattr(runner, "step", honest)
            assert (await model.generate("a", GREEDY)).outputs[0].text

    asyncio.run(ask())


def test_async_survives_what_nobody_may_ask() -> None:
    async def ask() -> None:
        async with AsyncLLM("cria") as model:
            with pytest.raises(TypeError, match="unhashable"):
                await model.generate("a", GREEDY, adapter=["a"])  # type: ignore[arg-type]
            assert (await asyncio.wait_for(model.generate("a", GREEDY), 60)).outputs[0].text

    asyncio.run(ask())


def test_names_that_are_nothing() -> None:
    with pytest.raises(ValueError, match="no such file or folder: nothing"):
        LLM("nothing")
    with pytest.raises(ValueError, match="puna pull meta-llama/Llama-2-7b-hf"):
        LLM("meta-llama/Llama-2-7b-hf")
    with pytest.raises(ValueError, match="no dtype 'int3'"):
        LLM("cria", dtype="int3")


def test_a_model_that_does_not_fit_is_said_before_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = open_checkpoint(shipped_path("cria"))

    def unread() -> Any:
        raise AssertionError("a weight was read")

    tensors = {name: replace(t, read=unread) for name, t in checkpoint.tensors.items()}
    checkpoint = replace(checkpoint, tensors=tensors)
    kv, small = (kv_bytes(checkpoint.config, 512, name) for name in ("f16", "int8"))
    assert (kv, small) == (6 * 2 * 256 * 2 * 512, 6 * 2 * (256 + 8 * 2) * 512)
    need = checkpoint.num_bytes + kv
    for free, advice in (
        (need - 1, "--kv-dtype int8 makes 1.7 MB of keys and values, which fits"),
        (need - kv + small - 1, "puna quantize --to q8_0 makes"),
        (quantized_bytes(checkpoint.config, "q4_k_m") + kv, "--to q4_k_m"),
        (1000, "No quantization would fit"),
    ):
        monkeypatch.setattr(loading, "free_memory", lambda free=free: free)
        with pytest.raises(ValueError) as caught:
            LLM(checkpoint)
        message = str(caught.value)
        assert advice in message and "512 tokens" in message and "are free" in message
    with pytest.raises(ValueError, match="Hold fewer tokens"):
        monkeypatch.setattr(loading, "free_memory", lambda: need * 3)
        LLM(checkpoint, kv_tokens=100_000)


def test_how_many_tokens_are_held() -> None:
    checkpoint = open_checkpoint(shipped_path("cria"))
    weights, one = checkpoint.num_bytes, kv_bytes(checkpoint.config, 1, "f32")
    for free, expected in (
        (None, 8 * 512),
        (10**12, 8 * 512),
        (weights + one * 512, 512),
        (weights + one * 4 * 1000, 1000),
    ):
        assert plan_kv_tokens(checkpoint, weights, free, None, "f32") == expected
    assert plan_kv_tokens(checkpoint, weights, 10**12, 77, "int8") == 77
    assert LLM("cria", kv_tokens=64).engine.pages.num_pages == 4


def test_free_memory_is_what_the_system_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    free = free_memory()
    assert free is not None and 10**7 < free < 10**14
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    real = memory.Path
    monkeypatch.setattr(
        memory, "Path", lambda text: tmp_path if text == "/sys/fs/cgroup" else real(text)
    )
    assert free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 10**7


def test_a_structured_answer_is_not_cut_where_a_tag_is_data(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    params = SamplingParams(max_tokens=40, json_schema={"const": "a [INST] b"})
    (result,) = llm.chat([{"role": "user", "content": "Hi"}], params)
    assert result.outputs[0].text == '"a [INST] b"'
