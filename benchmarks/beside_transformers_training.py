"""Training beside a plain loop around transformers' Llama: the same weights, the same batches.

    python benchmarks/beside_transformers_training.py twin SHARDS [--steps 200] [--perturbed 2]
    python benchmarks/beside_transformers_training.py speed SHARDS [--bursts 5] [--burst-steps 3]

SHARDS is a folder of token shards (`puna data build`, or the `data` of a run). Both sides begin
with the weights that `puna pretrain` would draw, which transformers reads from the folder that
Puna writes, and take the batches of Puna's loader, its learning rates, AdamW and clipping. The
plain loop is model(ids).logits, cross_entropy, backward, clip_grad_norm_ and torch.optim.AdamW as
it comes.

`twin` trains both to the end and compares loss and gradient norm at each step, then the loss on the
held-out windows. What difference is noise is told by further runs of Puna (--perturbed) whose first
weights differ by one part in a million (--noise); float32 rounds by one part in ten million or so,
but at each operation. The twin ends equal within noise where its held-out loss differs from Puna's
by no more than twice what theirs do (their root mean square).

`speed` lets the sides take turns, in bursts of steps on the same batches, and shows medians of
tokens a second and the median ratio to the plain loop in fp32 and in bf16 (autocast) in the same
burst. Puna's last sides are what `puna pretrain --compile` runs, without and with --loss-chunk. The
first burst, which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.commands.models import named_vocabulary
from puna.config import PRESETS, preset
from puna.data.loader import Loader
from puna.data.shards import open_shards
from puna.formats import huggingface
from puna.formats.network import as_checkpoint
from puna.model import Llama, initialize
from puna.tokenizer import Vocabulary
from puna.train.loop import Settings, make_optimizer, optimizer_step
from puna.train.pretrain import Pretrain
from puna.train.schedule import cosine
from puna.train.single import Single

EQUAL_STEPS = 5  # that float32 must not part by more than its rounding


@dataclass(frozen=True)
class Side:
    """`step(number, rate)` trains on a batch: mean loss a token and gradient norm; `held_out()` is
    the mean loss a token of what is not trained on."""

    step: Callable[[int, float], tuple[float, float]]
    held_out: Callable[[], float]


@dataclass(frozen=True)
class Job:
    """What all sides share."""

    loader: Loader
    vocabulary: Vocabulary
    network: Llama  # the first weights, which no side changes
    settings: Settings
    folder: Path  # where transformers reads them
    micro_batch_size: int

    def rate(self, step: int) -> float:
        settings = self.settings
        return cosine(
            step,
            peak=settings.learning_rate,
            warmup=settings.warmup_steps,
            total=settings.steps,
            final_fraction=settings.final_fraction,
        )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["twin", "speed"])
    parser.add_argument("shards", type=Path, help="folder of token shards")
    parser.add_argument("--model", default="tiny", choices=PRESETS)
    parser.add_argument("--tokenizer", default="cria", help="that of the shards")
    parser.add_argument("--context-length", type=int, help="the preset's by default")
    parser.add_argument("--batch-size", type=int, default=16, help="windows a step")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200, help="of the twin")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the twin")
    parser.add_argument("--held-out", type=int, default=32, help="windows of each source")
    parser.add_argument("--perturbed", type=int, default=2, help="runs that tell the noise")
    parser.add_argument("--noise", type=float, default=1e-6, help="of their first weights")
    parser.add_argument("--bursts", type=int, default=5)
    parser.add_argument("--burst-steps", type=int, default=3)
    parser.add_argument("--loss-chunk", type=int, default=512, help="tokens, of Puna's last side")
    parser.add_argument("--no-compile", action="store_true", help="without what is compiled")
    parser.add_argument("--threads", type=int, help="torch's choice by default")
    parser.add_argument("--json", type=Path, help="where the figures go")
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        try:
            job = prepared(args, Path(folder))
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        print(
            f"{args.model}: {job.network.config.num_parameters:,} parameters, batches of "
            f"{args.batch_size} windows of {job.network.config.context_length} tokens, "
            f"{torch.get_num_threads()} threads; load before: {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        found = {"twin": twin, "speed": speed}[args.what](args, job)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


def prepared(args: argparse.Namespace, folder: Path) -> Job:
    vocabulary = named_vocabulary(args.tokenizer)
    shape = dataclasses.replace(preset(args.model), vocab_size=len(vocabulary))
    if args.context_length is not None:
        shape = dataclasses.replace(shape, context_length=args.context_length)
    loader = Loader(
        open_shards(args.shards, vocabulary),
        context_length=shape.context_length,
        batch_size=args.batch_size,
        seed=args.seed,
        num_held_out=args.held_out,
    )
    settings = Settings(
        steps=args.steps,
        learning_rate=args.learning_rate,
        warmup_steps=args.steps // 10,
        dtype=args.dtype,
    )
    network = Llama(shape)
    initialize(network, torch.Generator().manual_seed(args.seed))
    huggingface.write(as_checkpoint(network, folder / "first", vocabulary), folder / "first")
    return Job(loader, vocabulary, network, settings, folder / "first", args.batch_size)


# --- sides ---


def puna_side(job: Job, *, noise: float = 0.0, seed: int = 0, **changed: Any) -> Side:
    """What `puna pretrain` does at each step; `changed` are settings that differ from the job's."""
    network = Llama(job.network.config)
    network.load_state_dict(job.network.state_dict())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1 + noise * torch.randn(weight.shape, generator=generator))
    settings = dataclasses.replace(job.settings, **changed)
    stage = Pretrain(
        job.loader,
        job.loader.batch,
        job.micro_batch_size,
        job.vocabulary.bos_id,
        loss_chunk=settings.loss_chunk,
    )
    trainee = Single(network, stage, settings)
    optimizer = make_optimizer(network, settings)

    def step(number: int, rate: float) -> tuple[float, float]:
        batches = stage.micro_batches(number)
        num_tokens = sum(map(stage.num_tokens, batches))
        return optimizer_step(
            trainee, optimizer, batches, num_tokens, rate=rate, grad_clip=settings.grad_clip
        )

    return Side(step, lambda: held_out_loss(job, trainee.losses))


def transformers_side(job: Job, *, dtype: str, compile: bool = False) -> Side:
    """The plain loop."""
    settings = job.settings
    network = LlamaForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
    network.config.use_cache = False
    network.train()
    forward = torch.compile(network) if compile else network
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )

    def loss_of(windows: Tensor) -> Tensor:
        precision = torch.autocast("cpu", torch.bfloat16) if dtype == "bf16" else None
        with precision or contextlib.nullcontext():
            logits = forward(input_ids=windows[:, :-1]).logits
            return F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    def step(number: int, rate: float) -> tuple[float, float]:
        loss = loss_of(torch.from_numpy(job.loader.batch(number)))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), settings.grad_clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), norm.item()

    def total(windows: Tensor) -> Tensor:
        return loss_of(windows) * windows[:, 1:].numel()

    return Side(step, lambda: held_out_loss(job, lambda pieces: [total(p).item() for p in pieces]))


@torch.no_grad()
def held_out_loss(job: Job, losses: Callable[[Sequence[Tensor]], list[float]]) -> float:
    """Mean loss a token of the held-out windows of all sources; `losses` sums over each piece."""
    pieces = [
        piece
        for windows in job.loader.held_out().values()
        for piece in torch.from_numpy(windows).split(job.micro_batch_size)
    ]
    num_tokens = sum(piece[:, 1:].numel() for piece in pieces)
    return sum(losses(pieces)) / num_tokens


# --- twin ---


def twin(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    sides = {
        "puna": puna_side(job),
        "transformers": transformers_side(job, dtype=args.dtype),
    } | {
        f"puna, perturbed {number}": puna_side(job, noise=args.noise, seed=number)
        for number in range(1, args.perturbed + 1)
    }
    others = list(sides)[1:]
    losses: dict[str, list[float]] = {name: [] for name in sides}
    norms: dict[str, list[float]] = {name: [] for name in sides}
    print("difference of loss from Puna's, a step (relative that of the gradient's norm)")
    print(f"{'step':>6}{'loss':>9}" + "".join(f"{name:>24}" for name in others), flush=True)
    for number in range(args.steps):
        for name, side in sides.items():
            loss, norm = side.step(number, job.rate(number))
            losses[name].append(loss)
            norms[name].append(norm)
        if number < EQUAL_STEPS or (number + 1) % max(1, args.steps // 10) == 0:
            cells = "".join(
                f"{losses[name][-1] - losses['puna'][-1]:+13.1e} "
                f"({norms[name][-1] / norms['puna'][-1] - 1:+8.0e})"
                for name in others
            )
            print(f"{number + 1:6}{losses['puna'][-1]:9.4f}{cells}", flush=True)
    held_out = {name: side.held_out() for name, side in sides.items()}
    for name, loss in held_out.items():
        print(f"held-out loss {loss:.6f} ({loss - held_out['puna']:+.1e})  {name}")
    difference = abs(held_out["transformers"] - held_out["puna"])
    noise, within = None, None
    if others[1:]:
        noise = math.hypot(*(held_out[name] - held_out["puna"] for name in others[1:]))
        noise /= math.sqrt(len(others[1:]))
        within = difference <= 2 * noise
        print(
            f"held out, transformers is {difference:.1e} from Puna, perturbed runs {noise:.1e}: "
            f"{'equal within noise' if within else 'further apart than noise'}"
        )
    return {
        "steps": args.steps,
        "dtype": args.dtype,
        "perturbed_by": args.noise,
        "losses": losses,
        "norms": norms,
        "held_out_loss": held_out,
        "difference": difference,
        "noise": noise,
        "equal_within_noise": within,
    }


# --- speed ---


def speed(args: argparse.Namespace, job: Job) -> dict[str, Any]:
    sides = {
        "transformers, fp32": transformers_side(job, dtype="fp32"),
        "puna, fp32": puna_side(job, dtype="fp32"),
        "transformers, bf16": transformers_side(job, dtype="bf16"),
        "puna, bf16": puna_side(job, dtype="bf16"),
    }
    if not args.no_compile:
        sides["transformers, bf16, compiled"] = transformers_side(job, dtype="bf16", compile=True)
        sides["puna, bf16, compiled"] = puna_side(job, dtype="bf16", compile=True)
        sides["puna, the same, loss in chunks"] = puna_side(
            job, dtype="bf16", compile=True, loss_chunk=args.loss_chunk
        )
    tokens = args.batch_size * job.network.config.context_length * args.burst_steps
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for burst in range(args.bursts + 1):
        # To and fro, so that no side always follows the same other.
        for name in list(sides) if burst % 2 else reversed(list(sides)):
            begin = time.perf_counter()
            for number in range(burst * args.burst_steps, (burst + 1) * args.burst_steps):
                sides[name].step(number, job.rate(min(number, args.steps - 1)))
            if burst:  # the first compiles, and touches memory
                speeds[name].append(tokens / (time.perf_counter() - begin))
        print(f"burst {burst} of {args.bursts}", file=sys.stderr, flush=True)
    print(f"{'':32}{'tokens/s':>9}{'range':>16}{'x plain fp32':>14}{'x plain bf16':>14}")
    rows = {}
    for name, own in speeds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(own, speeds[plain], strict=True))
            for plain in ("transformers, fp32", "transformers, bf16")
        ]
        middle = statistics.median(own)
        spread = f"{min(own):.0f} to {max(own):.0f}"
        print(f"{name:32}{middle:9.0f}{spread:>16}{ratios[0]:14.2f}{ratios[1]:14.2f}")
        rows[name] = {"tokens_per_second": own, "ratio_fp32": ratios[0], "ratio_bf16": ratios[1]}
    return {"threads": torch.get_num_threads(), "sides": rows}


if __name__ == "__main__":
    main()
