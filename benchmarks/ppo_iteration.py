"""An iteration of PPO, split into its parts, and its generation beside transformers'.

    python benchmarks/ppo_iteration.py [MODEL] [--prompts FILE] [--iterations 3] [--max-tokens 64]

MODEL is any model that opens, by default the shipped one; the reward models are networks of its
shape with a score. The parts are those that the run logs: generation (with the exchange of the
engine's weights), scoring, reading (the log-probabilities of policy and reference, and the values),
training. Then the same prompts are answered by the same policy and sampling in transformers: one
after another, as a plain loop does; in one padded batch; and that without a cache of keys and
values. Seconds are for the tokens of answers up to their end, of all prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from puna.chat import Message, encode_dialog
from puna.data.prompts import Prompt, read_prompts
from puna.formats import huggingface
from puna.formats.checkpoint import Checkpoint
from puna.formats.network import as_checkpoint
from puna.heads import attach, scalar
from puna.model import Llama
from puna.train.log import read_log
from puna.train.ppo.config import PPOConfig, ppo_settings, prepare
from puna.train.ppo.rollouts import PolicyEngine
from puna.train.ppo.run import ppo
from puna.train.ppo.scores import Scorers
from puna.train.sampling import Dialog, Scorer
from puna.train.starting import open_start, start_network, weights_digest
from puna.train.window_loss import hidden_states

VERBS = ("Describe", "Name three things about", "Tell a story about", "Explain", "Praise", "Draw")
THINGS = ("the moon", "a llama", "winter", "bread", "a river", "Peru", "glass", "a lost shoe",
          "the sea", "honey", "iron", "a village")  # fmt: skip


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cria")
    parser.add_argument("--prompts", type=Path, help="JSONL of dialogs; by default made up")
    parser.add_argument("--iterations", type=int, default=3, help="the first warms up")
    parser.add_argument("--iteration-size", type=int, default=64, help="answers")
    parser.add_argument("--batch-size", type=int, default=16, help="answers of a step")
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--bursts", type=int, default=3, help="of generation, sides alternating")
    parser.add_argument("--one-by-one", type=int, default=16, help="prompts of the slow sides")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    start = open_start(args.model)
    if args.prompts:
        prompts = read_prompts(args.prompts)
    else:
        asked = [f"{verb} {thing}." for verb in VERBS for thing in THINGS]
        prompts = [Prompt((Message("user", text),)) for text in asked]
    print(
        f"{start.config.num_parameters:,} parameters, {args.iteration_size} answers of at most "
        f"{args.max_tokens} tokens, {args.threads} thread; load before: {os.getloadavg()[0]:.1f}"
    )
    found = {"iteration": iteration(args, start, prompts)}
    found["generation"] = generation(args, start, prompts)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


# --- an iteration ---


def iteration(args: argparse.Namespace, start: Checkpoint, prompts: list[Prompt]) -> dict[str, Any]:
    steps = args.iteration_size // args.batch_size
    settings = ppo_settings(
        args.iterations, steps, dtype=args.dtype, device=args.device, evaluate_every=10**6
    )
    config = PPOConfig(
        start.config,
        settings,
        args.batch_size,
        args.micro_batch_size,
        iteration_size=args.iteration_size,
        max_tokens=args.max_tokens,
        num_held_out=0,
        start=args.model,
        start_digest=weights_digest(start),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        prepare(run, config, start, prompts)
        ppo(run, Scorers(reward_model(start, args), reward_model(start, args)))
        records = read_log(run / "log.jsonl")
    parts: dict[str, list[float]] = {}
    for begin in range(steps, len(records), steps):
        own = records[begin : begin + steps]
        seconds = dict(own[0]["rollout_seconds"])
        seconds["training"] = sum(r["seconds"]["passes"] + r["seconds"]["update"] for r in own)
        for name, value in seconds.items():
            parts.setdefault(name, []).append(value)
    total = sum(statistics.median(values) for values in parts.values())
    for name, values in parts.items():
        middle, span = statistics.median(values), f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:12}{middle:8.2f} s {middle / total:6.1%}   {span}")
    tokens = statistics.mean(r["answer_tokens"] for r in records) * args.iteration_size
    agreement = max(record["agreement"] for record in records)
    print(f"an iteration {total:.2f} s, {tokens:.0f} tokens; agreement {agreement:.1e}", flush=True)
    return {"seconds": parts, "tokens": tokens, "agreement": agreement}


def reward_model(start: Checkpoint, args: argparse.Namespace) -> Scorer:
    """A network of the policy's shape, whose score of a dialog is read at its end."""
    network = start_network(start, args.device)
    attach(network, "score")
    with torch.no_grad():
        network.get_submodule("score").weight.normal_()  # type: ignore[operator, union-attr]
    tokenizer = start.tokenizer()

    @torch.no_grad()
    def score(dialogs: Sequence[Dialog]) -> list[float]:
        scores: list[float] = []
        for begin in range(0, len(dialogs), args.micro_batch_size):
            some = dialogs[begin : begin + args.micro_batch_size]
            ids = [torch.tensor(encode_dialog(tokenizer, dialog).ids) for dialog in some]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(args.device)
            ends = torch.tensor([len(each) - 1 for each in ids])
            hidden = hidden_states(network, padded, None)[torch.arange(len(ids)), ends]
            scores += scalar(network, "score", hidden).tolist()
        return scores

    return score


# --- generation ---


def generation(
    args: argparse.Namespace, start: Checkpoint, prompts: list[Prompt]
) -> dict[str, Any]:
    tokenizer = start.tokenizer()
    ids = [encode_dialog(tokenizer, prompt.messages).ids for prompt in prompts]
    ids = [ids[number % len(ids)] for number in range(args.iteration_size)]
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write(start, Path(folder) / "model")
        twin = LlamaForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    twin = twin.to(args.device).eval()
    network = start_network(start, args.device)
    sides = {
        "puna": (puna_side(network, start, args, max(map(len, ids))), ids),
        "transformers, one by one": (one_by_one(twin, args), ids[: args.one_by_one]),
        "transformers, a batch": (a_batch(twin, args, use_cache=True), ids),
        "the same without a cache": (a_batch(twin, args, use_cache=False), ids[: args.one_by_one]),
    }
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for burst in range(args.bursts + 1):
        for name, (side, asked) in sides.items():
            begin = time.perf_counter()
            tokens = side(asked, burst)
            if burst:  # the first loads, and touches memory
                speeds[name].append(tokens / (time.perf_counter() - begin))
        print(f"burst {burst} of {args.bursts}", flush=True)
    for name, own in speeds.items():
        times = statistics.median(a / b for a, b in zip(speeds["puna"], own, strict=True))
        print(
            f"{name:28}{statistics.median(own):8.0f} tokens/s, {min(own):.0f} to {max(own):.0f}; "
            f"puna is {times:.1f} times as fast"
        )
    return {name: {"tokens_per_second": own} for name, own in speeds.items()}


Side = Callable[[list[list[int]], int], int]


def puna_side(network: Llama, start: Checkpoint, args: argparse.Namespace, longest: int) -> Side:
    """As a rollout does it, with the exchange of weights and log-probabilities of the first 64."""
    assert start.vocabulary is not None
    longest += args.max_tokens
    live = partial(as_checkpoint, network, start.path, start.vocabulary)
    engine = PolicyEngine(live, network.config, longest=longest, device=args.device)

    def side(prompts: list[list[int]], burst: int) -> int:
        seeds = [burst * len(prompts) + number for number in range(len(prompts))]
        answers = engine(prompts, seeds, max_tokens=args.max_tokens, num_checked=64)
        return int(answers.tokens.lengths.sum())

    return side


def one_by_one(twin: Any, args: argparse.Namespace) -> Side:
    def side(prompts: list[list[int]], burst: int) -> int:
        return sum(generated(twin, [prompt], args, use_cache=True) for prompt in prompts)

    return side


def a_batch(twin: Any, args: argparse.Namespace, *, use_cache: bool) -> Side:
    def side(prompts: list[list[int]], burst: int) -> int:
        return generated(twin, prompts, args, use_cache=use_cache)

    return side


@torch.no_grad()
def generated(
    twin: Any, prompts: list[list[int]], args: argparse.Namespace, *, use_cache: bool
) -> int:
    """Tokens of the answers, up to the end of each."""
    width = max(map(len, prompts))
    padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts], device=args.device)
    mask = torch.tensor(
        [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=args.device
    )
    out: Tensor = twin.generate(
        padded, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
        max_new_tokens=args.max_tokens, eos_token_id=2, pad_token_id=0, use_cache=use_cache,
    )  # fmt: skip
    ended = (out[:, width:] == 2).cumsum(1)
    return int((ended - (out[:, width:] == 2).long() == 0).sum())


if __name__ == "__main__":
    main()
