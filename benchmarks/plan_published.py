"""The planner against published training runs: Llama 2's, to whose GPU-hours one share of a run was
fitted, and others, to which nothing was.

    python benchmarks/plan_published.py          # tables: predicted, published, error
    python benchmarks/plan_published.py --json   # the others

Llama 2: GPU-hours and power of the paper's table 2 (arXiv 2307.09288) for 2T tokens; 2000 A100-80GB
are the document's for 70B and *ours* for the others, of which no number was published.

Sources: torchtitan's docs/performance.md (64 A100-80GB, 2024) and benchmarks/ (H100 of December
2024 and June 2025, H200 of June 2025), tokens a second and GPU of a step; "LLaMA" (arXiv
2302.13971, table 15), GPU-hours of whole runs on A100-80GB, whose 2048 GPUs the paper gives for 65B
and are *ours* for the others. torchtitan's H100s have 96 GB, 2.4 TB/s and 500 W.

What torchtitan recomputes is not what Puna does: "op" is every other product besides what lies
between them, "layer" every other layer. Their times are the mean of the two that lie around them.
Not compared: asynchronous tensor parallel and row-wise float8, which Puna has not, and 405B, whose
126 layers do not divide over its stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from dataclasses import dataclass

from puna import catalog
from puna.config import ModelConfig, preset
from puna.plan.compute import Kernels
from puna.plan.hardware import Cluster, device
from puna.plan.layout import Layout
from puna.plan.search import Run
from puna.plan.step import step_time
from puna.plan.train import plan_train

LLAMA3_8B = ModelConfig(4096, 32, 32, 8, 14336, vocab_size=128256, context_length=8192)
LLAMA3_70B = ModelConfig(8192, 80, 64, 8, 28672, vocab_size=128256, context_length=8192)
LLAMA2_13B, LLAMA2_70B = preset("13b"), preset("70b")

# What was recomputed -> whose mean it is.
KINDS = {
    "none": ("none",), "layer": ("none", "full"), "op": ("selective", "full"), "full": ("full",)
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """`micro` windows of a rank in a step, `kernels` "eager", "compiled" or "fp8" (compiled)."""

    name: str
    model: ModelConfig
    gpu: str
    layout: str
    micro: int
    recompute: str
    kernels: str
    tokens_per_second: float


def at(model: ModelConfig, context_length: int) -> ModelConfig:
    return dataclasses.replace(model, context_length=context_length)


RUNS = (
    Published("Llama 2 13B", LLAMA2_13B, "a100-80g", "fsdp=64", 2, "none", "eager", 2162),
    Published("Llama 2 13B", LLAMA2_13B, "a100-80g", "fsdp=64", 2, "layer", "eager", 1914),
    Published("Llama 2 13B", LLAMA2_13B, "a100-80g", "fsdp=64", 2, "op", "eager", 1904),
    Published("Llama 2 70B", LLAMA2_70B, "a100-80g", "fsdp=64", 1, "op", "eager", 355),
    Published("Llama 2 70B", LLAMA2_70B, "a100-80g", "fsdp=64", 2, "full", "eager", 353),
    Published("Llama 3 8B", LLAMA3_8B, "a100-80g", "fsdp=64", 1, "layer", "eager", 2904),
    Published("Llama 3 8B", LLAMA3_8B, "a100-80g", "fsdp=64", 1, "op", "eager", 2973),
    Published("Llama 3 70B", LLAMA3_70B, "a100-80g", "fsdp=64", 1, "full", "eager", 331),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=8", 2, "op", "eager", 5762),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=8", 2, "op", "compiled", 6667),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=8", 2, "op", "fp8", 8532),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=128", 2, "op", "eager", 5605),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=128", 2, "op", "compiled", 6514),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=128", 2, "op", "fp8", 8380),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=8 tp=8", 12, "op", "compiled", 4378),
    Published("Llama 3.1 8B", LLAMA3_8B, "h100-96g", "fsdp=8 tp=8", 12, "op", "fp8", 5078.1),
    Published("Llama 3.1 70B", LLAMA3_70B, "h100-96g", "fsdp=32 tp=8", 16, "full", "fp8", 829),
    Published(
        "Llama 3.1 70B, 2025", LLAMA3_70B, "h100-96g", "fsdp=32 tp=8", 16, "full", "fp8", 809.8
    ),
    Published(
        "Llama 3.1 70B, 2025", LLAMA3_70B, "h100-96g", "fsdp=32 tp=8", 16, "full", "compiled", 597.3
    ),
    Published("Llama 3.1 8B", LLAMA3_8B, "h200", "fsdp=32", 2, "op", "fp8", 10938),
    Published("Llama 3.1 8B", LLAMA3_8B, "h200", "fsdp=64", 2, "op", "fp8", 10753),
    # torchtitan's context parallel is a ring that is balanced under the causal mask; Puna's gathers
    # keys and values and computes what the mask hides.
    Published("8B, 32k", at(LLAMA3_8B, 2**15), "h100-96g", "fsdp=8", 1, "full", "fp8", 3890),
    Published("8B, 64k", at(LLAMA3_8B, 2**16), "h100-96g", "fsdp=4 cp=2", 1, "full", "fp8", 2540),
    Published("8B, 128k", at(LLAMA3_8B, 2**17), "h100-96g", "fsdp=2 cp=4", 1, "full", "fp8", 1071),
    Published("8B, 256k", at(LLAMA3_8B, 2**18), "h100-96g", "cp=8", 1, "full", "fp8", 548),
)
POWER = {"h100-96g": 500.0}
# LLAMA's GPU-hours of table 15, and its batch of 4M tokens.
LLAMA1_HOURS = {
    "llama1-7b": 82_432, "llama1-13b": 135_168, "llama1-33b": 530_432, "llama1-65b": 1_022_362
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One published figure: tokens a second and GPU."""

    what: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1


def compare_step(run: Published) -> Compared:
    layout = Layout.parse(run.layout)
    cluster = Cluster(device(run.gpu), layout.num_ranks, power=POWER.get(run.gpu, 0.0))
    kernels = Kernels(
        cluster, "fp8" if run.kernels == "fp8" else "bf16", compiled=run.kernels != "eager"
    )
    seconds = statistics.mean(
        step_time(
            run.model, kernels, layout, micro_batch_size=run.micro, num_pieces=1, recompute=kind
        ).total
        for kind in KINDS[run.recompute]
    )
    windows = run.micro * layout.num_data_ranks
    speed = windows * run.model.context_length / seconds / cluster.count
    what = f"{run.name}, {layout.num_ranks} x {run.gpu}, {run.layout}, {run.recompute}, "
    return Compared(what + run.kernels, speed, run.tokens_per_second)


def compare_run(name: str, hours: int, count: int, watts: float = 0.0) -> Compared:
    """A whole run on A100s, on the layout that the planner finds."""
    known = catalog.find(name)
    assert known is not None
    model = known.config
    cluster = Cluster(device("a100-80g"), count, power=watts)
    run = Run(model, Kernels(cluster), 2**22 // model.context_length)
    plan, _ = plan_train(run, known.tokens)
    what = f"{name}, {known.tokens:.2g} tokens, the whole run"
    return Compared(what, plan.tokens_per_second, known.tokens / hours / 3600)


def compare() -> list[Compared]:
    """The runs that nothing was fitted to."""
    runs = [compare_run(name, hours, 2048) for name, hours in LLAMA1_HOURS.items()]
    return [compare_step(run) for run in RUNS] + runs


def fitted() -> list[Compared]:
    """The four runs of Llama 2."""
    rows = []
    for size in ("7b", "13b", "34b", "70b"):
        known = catalog.find(f"llama-2-{size}")
        assert known is not None and known.gpu_hours is not None and known.power_watts is not None
        rows.append(compare_run(known.name, known.gpu_hours, 2000, known.power_watts))
    return rows


def median_error(compared: list[Compared]) -> float:
    return statistics.median(abs(row.error) for row in compared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    rows = compare()
    if parser.parse_args().json:
        print(json.dumps([{**dataclasses.asdict(row), "error": row.error} for row in rows]))
        return
    for title, found in (("Fitted", fitted()), ("Held out", rows)):
        print(f"{title}\n\n| run | predicted, tokens/s/GPU | published | error |")
        print("|---|---|---|---|")
        for row in found:
            speeds = f"{row.predicted:,.0f} | {row.published:,.0f}"
            print(f"| {row.what} | {speeds} | {row.error:+.1%} |")
        print(f"\nmedian error {median_error(found):.1%} of {len(found)}\n")


if __name__ == "__main__":
    main()
