"""PPO on a policy of a few thousand weights: it learns, is held, resumes, says what is wrong."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from puna import lora
from puna.attention import causal
from puna.chat import Message
from puna.data.prompts import Prompt
from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.formats import open_checkpoint
from puna.formats.network import as_checkpoint, load_model
from puna.formats.run_folder import checkpoint_path
from puna.heads import attach
from puna.lora import LoRASettings
from puna.model import Llama
from puna.tokenizer import Vocabulary
from puna.train.log import Record, read_log
from puna.train.ppo.config import PPOConfig, ppo_settings, prepare, usual_beta
from puna.train.ppo.early_stopping import best_step, evaluations
from puna.train.ppo.experience import experience_path, read_experience, write_experience
from puna.train.ppo.rollouts import PolicyEngine, disagreement, pack, read_answers
from puna.train.ppo.run import ppo
from puna.train.ppo.scores import Scorers, scores_of
from puna.train.run_config import read_config
from puna.train.sampling import Dialog, Scorer
from tests.samples import random_model, small_config, transformers_twin
from tests.train.ppo.small_policy import PROMPTS, letters, new_policy, new_run, ppo_config
from tests.train.runs import newest


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    return new_policy(tmp_path_factory.mktemp("policy") / "start", vocabulary)


def message(text: str) -> Message:
    return Message("user", text)


def load_model_of(model: Llama, weights: dict[str, torch.Tensor]) -> Llama:
    other = Llama(model.config)
    other.load_state_dict(weights)
    return other


def log_without_times(run: Path) -> list[Record]:
    timed = ("seconds", "rollout_seconds", "tokens_per_second", "tflops", "memory")
    return [
        {name: value for name, value in record.items() if name not in timed}
        for record in read_log(run / "log.jsonl")
    ]


def test_the_true_reward_rises(tmp_path: Path, start: Path) -> None:
    run = new_run(
        tmp_path / "run", start, iterations=8, iteration_size=64, learning_rate=1e-2,
        evaluate_every=4,
    )  # fmt: skip
    phases: list[str] = []
    scorers = Scorers(letters, gold=letters)
    assert ppo(run, scorers, on_phase=lambda position, step, phase: phases.append(phase))
    assert phases.count("evaluation") == 2  # the watch over several processes knows of them
    records = read_log(run / "log.jsonl")
    first, last = records[0], records[-1]
    assert len(records) == 64 and [r["iteration"] for r in records[::8]] == list(range(8))
    assert last["reward"] > 4 * first["reward"] > 0
    assert last["held_out_reward"] > 2 * first["start"]["reward"]
    assert last["held_out_gold"] == last["held_out_reward"]
    # It began as the reference, and was the engine's policy all along.
    assert first["kl"] == 0 and last["kl"] > 1
    assert max(record["agreement"] for record in records) < 1e-4
    assert first["clip_fraction"] == 0 and max(r["clip_fraction"] for r in records) > 0.1
    assert last["entropy"] < first["entropy"] < math.log(420)
    assert set(first["rollout_seconds"]) == {"generation", "scoring", "reading"}
    # The policy opens as a model, its value head beside it.
    checkpoint = open_checkpoint(newest(run)[0])
    assert checkpoint.heads == ("value",)
    assert checkpoint.tensors["value.weight"].read_float32().any()


def test_answers_to_one_prompt_are_compared(tmp_path: Path, start: Path) -> None:
    asked: list[tuple[Message, ...]] = []

    def by_prompt(dialogs: Sequence[Dialog]) -> list[float]:
        """Of the prompt alone: there is nothing to learn."""
        if len(dialogs) == 32:
            asked.extend(tuple(dialog[:-1]) for dialog in dialogs)
        return [float(len(dialog[0].content)) for dialog in dialogs]

    run = new_run(
        tmp_path / "run", start, iterations=1, iteration_size=32, answers_per_prompt=4,
        learning_rate=0.0, cut_off_penalty=0.0,
    )  # fmt: skip
    assert ppo(run, Scorers(by_prompt))
    assert all(len(set(asked[at : at + 4])) == 1 for at in range(0, 32, 4))
    assert len(set(asked)) == 8
    found = read_experience(experience_path(run, 0))
    assert not found.advantages.any()


def test_pairs_beside_the_start_learn_too(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """One copy of the base is policy and reference."""
    start = new_policy(
        tmp_path / "sharp", vocabulary, sharpness=25
    )  # pairs leave the head as it is
    run = new_run(
        tmp_path / "run", start, iterations=5, iteration_size=64, learning_rate=3e-2,
        lora=LoRASettings(8, base="fp32"),
    )  # fmt: skip
    assert ppo(run, Scorers(letters))
    records = read_log(run / "log.jsonl")
    assert records[-1]["reward"] > 3 * records[0]["reward"] > 0
    assert records[0]["kl"] == 0 and records[-1]["kl"] > 1
    assert max(record["agreement"] for record in records) < 1e-4
    # The base beside the adapter answers as the policy that was trained.
    config, saved = read_config(run, PPOConfig), newest(run)[0]
    assert config.opened_by(saved) == f"--model {start} --lora {saved}"
    llm = LLM(start, dtype="fp32", adapters={"policy": saved})
    params = SamplingParams(1.0, top_p=1.0, max_tokens=6, seed=1)
    asked = [[message("count llamas")] for _ in range(8)]
    several = [replace(params, seed=seed) for seed in range(8)]
    adapted, plain = (
        letters([[message(x.outputs[0].text)] for x in llm.chat(asked, several, adapter=name)])
        for name in ("policy", None)
    )
    assert sum(adapted) > 2 * sum(plain)


def test_a_networks_pairs_are_merged_into_its_checkpoint() -> None:
    model = random_model(small_config())
    plain = {name: weight.clone() for name, weight in model.named_parameters()}
    lora.attach(model, LoRASettings(3, 6, ("wq", "w2")), torch.Generator().manual_seed(0))
    attach(model, "value")
    with torch.no_grad():
        for layer in lora.layers_of(model).values():
            layer.lora_b.normal_()
    found = as_checkpoint(model, Path("x"), None)
    assert set(found.tensors) == {*plain, "value.weight"}
    tokens = torch.tensor([[1, 5, 9, 4]])
    whole = load_model(found.without_heads())
    args = (tokens, torch.arange(4)[None], causal)
    torch.testing.assert_close(whole(*args), model(*args), rtol=1e-5, atol=1e-5)
    with lora.without_pairs(model):
        before = model(*args)
    assert (before - model(*args)).abs().max() > 0.1
    assert torch.equal(before, load_model_of(model, plain)(*args))


def test_a_rate_of_0_changes_nothing(tmp_path: Path, start: Path) -> None:
    run = new_run(tmp_path / "run", start, learning_rate=0.0)
    assert ppo(run, Scorers(letters))
    before, after = (open_checkpoint(path).tensors for path in (start, newest(run)[0]))
    for name, tensor in before.items():
        assert tensor.read().tobytes() == after[name].read().tobytes()
    assert not after["value.weight"].read_float32().any()
    records = read_log(run / "log.jsonl")
    assert [record["kl"] for record in records] == [0.0] * 6
    assert [record["clip_fraction"] for record in records] == [0.0] * 6
    # Other answers in each iteration, to other prompts.
    assert len({record["policy_loss"] for record in records}) == 6


@pytest.mark.parametrize(
    ("killed_after", "lora"), [(1, None), (3, None), (3, LoRASettings(2, base="fp32"))], ids=str
)
def test_killed_in_an_iteration_it_goes_on_bit_identically(
    tmp_path: Path, start: Path, killed_after: int, lora: LoRASettings | None
) -> None:
    class Killed(BaseException):
        pass

    def kill(record: Record) -> None:
        if record["step"] == killed_after + 2:
            raise Killed

    options = {"iterations": 3, "checkpoint_every": 1, "evaluate_every": 2, "lora": lora}
    whole, broken = (new_run(tmp_path / name, start, **options) for name in ("whole", "broken"))
    assert ppo(whole, Scorers(letters))
    with pytest.raises(Killed):
        ppo(broken, Scorers(letters), on_record=kill)
    # A step of the checkpoint's iteration is still to come: what was sampled for it is there.
    checkpoint_path(broken, killed_after + 1).rename(tmp_path / "lost")
    assert newest(broken)[1].step == killed_after
    calls: list[int] = []

    def counting(dialogs: Sequence[Dialog]) -> list[float]:
        calls.append(len(dialogs))
        return letters(dialogs)

    assert ppo(broken, Scorers(counting))
    assert calls.count(16) == 2 - killed_after // 2  # that iteration was not sampled again
    assert log_without_times(broken) == log_without_times(whole)
    for path in newest(whole)[0].glob("*.safetensors"):
        assert path.read_bytes() == (newest(broken)[0] / path.name).read_bytes()


def test_what_was_sampled_goes_when_no_checkpoint_needs_it(tmp_path: Path, start: Path) -> None:
    # Checkpoints after 3, 6, 9 of 12 steps, two an iteration; two are kept.
    run = new_run(tmp_path / "run", start, iterations=6, checkpoint_every=3, patience=1)
    seen: list[list[int]] = []

    def look(record: Record) -> None:
        names = sorted(path.stem for path in (run / "rollouts").iterdir())
        seen.append([int(name[-6:]) for name in names])

    assert ppo(run, Scorers(letters), on_record=look)
    assert seen[4] == [1, 2]  # step 5: the checkpoint of step 3 is in iteration 1
    assert seen[-1] == [4, 5]  # of 9; that of 6 begins with iteration 3, which samples anew
    path = experience_path(run, 5)
    path.unlink()
    with pytest.raises(ValueError, match="is gone: the run is in the middle of that iteration"):
        read_experience(path)


def test_experience_is_kept_bit_for_bit(tmp_path: Path, start: Path) -> None:
    run = new_run(tmp_path / "run", start, iterations=1)
    assert ppo(run, Scorers(letters))
    once = read_experience(experience_path(run, 0))
    write_experience(tmp_path / "rollouts" / "again", once)
    again = read_experience(tmp_path / "rollouts" / "again")
    assert once.figures == again.figures
    for name in ("logprobs", "values", "advantages", "returns"):
        first, second = getattr(once, name), getattr(again, name)
        assert (
            first.dtype == torch.float32 and first.isfinite().all() and torch.equal(first, second)
        )
        assert not first[~once.tokens.mask].any()
    raw = bytearray((tmp_path / "rollouts" / "again").read_bytes())
    (tmp_path / "cut").write_bytes(raw[:-9])
    with pytest.raises(ValueError, match="truncated"):
        read_experience(tmp_path / "cut")


def test_the_ids_that_were_sampled_are_trained_on(tmp_path: Path, start: Path) -> None:
    run = new_run(tmp_path / "run", start, iterations=1)
    texts: list[str] = []

    def scorer(dialogs: Sequence[Dialog]) -> list[float]:
        texts.extend(dialog[-1].content for dialog in dialogs)
        return letters(dialogs)

    assert ppo(run, Scorers(scorer))
    tokens = read_experience(experience_path(run, 0)).tokens
    tokenizer = open_checkpoint(start).tokenizer()
    differs = 0
    for ids, begin, length, text in zip(*map(torch.Tensor.tolist, (
        tokens.ids, tokens.prompt_lengths, tokens.lengths)), texts[4:20], strict=True):  # fmt: skip
        answer = ids[begin : begin + length]
        assert tokenizer.decode([*ids[:begin], *answer]).endswith(text)
        differs += tokenizer.encode(text) != answer
    assert differs > 0  # what is encoded anew is something else


def test_reading_answers_equals_transformers_one_by_one() -> None:
    model = random_model(small_config())
    twin = transformers_twin(model)
    generator = torch.Generator().manual_seed(1)
    prompts, answers = (
        [torch.randint(97, (n,), generator=generator).tolist() for n in lengths]
        for lengths in ((3, 7, 1), (4, 1, 9))
    )
    tokens = pack(prompts, answers)
    states, logits, targets = read_answers(model, model, tokens)
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        rows = twin(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected.append(rows)
    torch.testing.assert_close(logits, torch.cat(expected), rtol=0, atol=1e-4)
    assert targets.tolist() == [token for answer in answers for token in answer]
    assert len(states) == 14
    some = tokens.of(torch.tensor([2, 1]))
    _, fewer, _ = read_answers(model, model, some)
    torch.testing.assert_close(fewer, torch.cat(expected[:0:-1]), rtol=0, atol=1e-4)


def test_the_engine_samples_from_the_live_weights(vocabulary: Vocabulary) -> None:
    network = random_model(small_config(vocab_size=420))
    attach(network, "value")
    live = partial(as_checkpoint, network, Path("x"), vocabulary)
    engine = PolicyEngine(live, network.config, longest=15)
    prompts = [[1, 50, 60], [1, 70]]
    for seed in range(2):
        if seed:
            with torch.no_grad():
                network.layers["0"].attention.wq.weight.mul_(-1)  # type: ignore[union-attr]
        answers = engine(prompts, [7, 8], max_tokens=12, num_checked=1)
        llm = LLM(as_checkpoint(network, Path("x"), vocabulary).without_heads(), dtype="fp32")
        for number, prompt in enumerate(prompts):
            params = SamplingParams(1.0, top_p=1.0, seed=7 + number, max_tokens=12)
            ids = llm.generate([prompt], params)[0].outputs[0].token_ids
            begin, length = len(prompt), int(answers.tokens.lengths[number])
            assert answers.tokens.ids[number, begin : begin + length].tolist() == ids
            assert bool(answers.finished[number]) == (ids[-1] == vocabulary.eos_id)
        _, logits, targets = read_answers(network, network, answers.tokens)
        found = torch.zeros(answers.tokens.mask.shape)
        found[answers.tokens.mask] = (
            logits.log_softmax(-1).gather(1, targets[:, None])[:, 0].detach()
        )
        assert list(map(len, answers.logprobs)) == [int(answers.tokens.lengths[0]), 0]
        assert disagreement(answers, found) < 1e-5
        assert disagreement(answers, found + 0.25) == pytest.approx(0.25, abs=1e-5)


def test_an_engine_with_other_weights_is_an_error_in_the_log(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    updated = PolicyEngine._updated

    def stale(self: PolicyEngine) -> LLM:
        return self._llm or updated(self)

    monkeypatch.setattr(PolicyEngine, "_updated", stale)
    run = new_run(tmp_path / "run", start, learning_rate=1e-2)
    with caplog.at_level(logging.ERROR):
        assert ppo(run, Scorers(letters))
    records = read_log(run / "log.jsonl")
    assert "error" not in records[0] and records[0]["agreement"] < 1e-5
    assert "policy and engine are" in records[-1]["error"] and records[-1]["agreement"] > 1e-3
    assert "iteration 1" in caplog.text


def test_the_switch_uses_the_prompts_own_flag(start: Path) -> None:
    helpful = lambda dialogs: [5.0] * len(dialogs)  # noqa: E731
    texts = ["safe", "unsafe", "safe"]

    def safety(dialogs: Sequence[Dialog]) -> list[float]:
        return [-4.0 if dialog[-1].content == "unsafe" else 2.0 for dialog in dialogs]

    found = scores_of(Scorers(helpful, safety), PROMPTS[:3], texts)  # the third is of foxes
    assert found.reward.tolist() == [5.0, -4.0, 2.0]
    assert found.means() == {"reward": 1.0, "helpfulness": 5.0, "safety": 0.0}
    looks_unsafe = replace(PROMPTS[0], risk="illicit")
    found = scores_of(Scorers(helpful, safety), [looks_unsafe, PROMPTS[0]], ["safe", "safe"])
    assert found.reward.tolist() == [2.0, 5.0]
    alone = scores_of(Scorers(helpful), PROMPTS[:3], texts)
    assert alone.reward.tolist() == [5.0] * 3 and alone.safety is None


def test_a_reward_that_is_no_number(tmp_path: Path, start: Path) -> None:
    run = new_run(tmp_path / "run", start)
    broken = lambda dialogs: [math.nan] * len(dialogs)  # noqa: E731
    with pytest.raises(ValueError, match="safety: the reward model gave nan for an answer to"):
        ppo(run, Scorers(letters, broken))
    with pytest.raises(ValueError, match="helpfulness: the reward model gave 1 rewards for 4"):
        ppo(run, Scorers(lambda dialogs: [0.0]))


@pytest.mark.parametrize("killed_after", [0, 1, 3])
def test_it_stops_early_and_stays_stopped(tmp_path: Path, start: Path, killed_after: int) -> None:
    calls = 0

    def falling(dialogs: Sequence[Dialog]) -> list[float]:
        nonlocal calls
        calls += 1
        return [-float(calls)] * len(dialogs)

    def kill(record: Record) -> None:
        if record["step"] == killed_after:
            raise KeyboardInterrupt

    run = new_run(tmp_path / "run", start, iterations=9, evaluate_every=1, patience=2)
    if killed_after:
        with pytest.raises(KeyboardInterrupt):
            ppo(run, Scorers(falling), on_record=kill)
    assert ppo(run, Scorers(falling))
    found = evaluations(run)
    # The start was best, and two evaluations after it were worse.
    assert [step for step, _ in found] == [0, 2, 4] and best_step(run) == 0
    assert newest(run)[1].step == 4
    before, begun = calls, []
    assert ppo(run, Scorers(falling), on_start=begun.append)
    assert calls == before and begun == [4]


def test_the_best_is_one_whose_checkpoint_is_there(tmp_path: Path, start: Path) -> None:
    # Its second evaluation is the best of four; two checkpoints are kept.
    def told(*evaluations: float) -> Scorer:
        scores = iter(evaluations)
        return lambda dialogs: [next(scores) if len(dialogs) == 4 else 0.0] * len(dialogs)

    run = new_run(tmp_path / "run", start, iterations=4, evaluate_every=1, patience=0)
    config = json.loads((run / "config.json").read_text())
    config["settings"]["keep_checkpoints"] = 2
    (run / "config.json").write_text(json.dumps(config))
    assert ppo(run, Scorers(told(0, 1, 3, 2, 1), gold=told(4, 9, 5, 6, 7)))
    assert dict(evaluations(run)) == {0: 0.0, 2: 1.0, 4: 3.0, 6: 2.0, 8: 1.0}
    assert best_step(run) == 6 and checkpoint_path(run, 6).is_dir()
    # Another score of the same answers may know better.
    assert dict(evaluations(run, by="gold")) == {0: 4.0, 2: 9.0, 4: 5.0, 6: 6.0, 8: 7.0}
    assert best_step(run, "gold") == 8


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path, start: Path) -> None:
    checkpoint = open_checkpoint(start)
    long = Prompt((Message("user", "a long question " * 9),))
    given = [long, *PROMPTS, long, PROMPTS[3]]
    assert prepare(tmp_path / "run", ppo_config(start), checkpoint, given) == (2, 1)
    assert len((tmp_path / "run" / "prompts.jsonl").read_text().splitlines()) == len(PROMPTS)
    with pytest.raises(
        ValueError, match="0 of 1 prompts differ and leave room for answers of 6 tokens"
    ):
        prepare(tmp_path / "none", ppo_config(start), checkpoint, [long])
    assert not (tmp_path / "none").exists()


def test_another_start_is_refused(tmp_path: Path, start: Path, vocabulary: Vocabulary) -> None:
    run = new_run(tmp_path / "run", start)
    other = new_policy(tmp_path / "other", vocabulary)
    network = load_model(open_checkpoint(other))
    with torch.no_grad():
        network.norm.weight[0] += 0.5
    from puna.formats import huggingface

    huggingface.write(as_checkpoint(network, other, vocabulary), tmp_path / "changed")
    text = (run / "config.json").read_text().replace(str(start), str(tmp_path / "changed"))
    (run / "config.json").write_text(text)
    with pytest.raises(ValueError, match="is not what the run began from"):
        ppo(run, Scorers(letters))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"iteration_size": 12}, "an iteration of 12 answers is no multiple of the batch size 8"),
        ({"answers_per_prompt": 3}, "is no multiple of 3 answers to each prompt"),
        ({"compile": True}, "PPO runs without compile and float8"),
        ({"parallel": "tp=2"}, "'tp=2': PPO can be cut by dp and fsdp alone"),
        ({"parallel": "dp=2", "lora": LoRASettings(2, base="fp32")}, "are trained in one process"),
        ({"parallel": "dp=2", "num_held_out": 1}, "2 processes cannot share 1 held-out prompts"),
        ({"max_rollbacks": 2}, "max_rollbacks and spike_deviations must be 0"),
        ({"max_tokens": 48}, "leave no room for a prompt in a context of 48"),
        ({"beta": -0.1}, "beta must be 0 or more, not -0.1"),
        ({"beta": math.nan}, "beta must be 0 or more, not nan"),
        ({"lora": LoRASettings(2)}, "their base is fp32"),
        ({"gamma": 1.5}, "gamma must be from 0 to 1, not 1.5"),
        ({"learning_rate": -1.0}, "learning_rate must be 0 or more"),
    ],
)
def test_settings_that_cannot_be(start: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ppo_config(start, **changes)


def test_the_papers_numbers() -> None:
    from puna.config import preset

    settings = ppo_settings(200, 8)
    config = PPOConfig(preset("7b"), settings, 64, 8)
    assert (config.iteration_size, config.steps_per_iteration, config.clip) == (512, 8, 0.2)
    assert (settings.beta1, settings.beta2, settings.eps) == (0.9, 0.95, 1e-5)
    assert (settings.weight_decay, settings.grad_clip, settings.learning_rate) == (0.1, 1.0, 1e-6)
    assert settings.steps == 1600
    from puna.train.schedule import cosine

    for step in (0, 7, 1599):
        assert cosine(step, peak=1e-6, warmup=0, total=1600, final_fraction=1.0) == 1e-6
    assert [usual_beta(preset(name)) for name in ("7b", "13b", "34b", "70b")] == [
        0.01, 0.01, 0.005, 0.005,
    ]  # fmt: skip


def test_the_config_comes_back(tmp_path: Path, start: Path) -> None:
    run = new_run(tmp_path / "run", start)
    assert read_config(run, PPOConfig) == ppo_config(start)
    assert json.loads((run / "config.json").read_text())["stage"] == "ppo"
