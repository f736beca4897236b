"""ARC-Challenge with 25 shots: Puna beside `lm_eval --model hf`, the same questions by turns.

    python benchmarks/eval_beside_hf.py --data DIR --tokenizer FILE [--rounds 3] [--questions 2]

Random weights of the 110M shape (llama2.c's, with a context of 4,096 so that nothing is cut off) in
float32, as GGUF for Puna and as a folder for transformers. lm-eval builds the prompts once; a burst
is its call of the model for the endings of some questions. Each side has one thread, whose seconds
are those of the processor, so that other work on the machine counts little. The
shots are each question's own, as lm-eval draws them, and then the same for all (`shared_shots`);
there Puna's first burst, which runs them, is left out, and `--whole` times all questions, shots
included, with Puna alone. Also says how far the log-likelihoods are apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from convert_7b import random_checkpoint
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.config import ModelConfig
from puna.engine.llm import LLM
from puna.evaluate.harness.loading import load
from puna.evaluate.harness.model import PunaLM
from puna.evaluate.harness.running import quiet
from puna.evaluate.tasks.table import TASKS
from puna.formats import save_checkpoint
from puna.formats.vocabularies import load_vocabulary

SHAPE = ModelConfig(768, 12, 12, 12, 2048, context_length=4096, tied=True)
_ENDINGS = 4  # of almost all questions


def questions_of(data: Path, *, shared: bool) -> list[list[Any]]:
    """lm-eval's requests of each question."""
    task = TASKS["arc_challenge"]
    with quiet():
        (part,) = load(task, data, shots=task.shots, seed=1234, shared_shots=shared).values()
        part.build_all_requests()
    found: dict[int, list[Any]] = {}
    for request in part.instances:
        found.setdefault(request.doc_id, []).append(request)
    return list(found.values())


def seconds(model: Any, requests: list[Any]) -> tuple[float, list[float]]:
    """Processor time that a model takes, and its log-likelihoods."""
    begin = time.process_time()
    answers = model.loglikelihood(requests, disable_tqdm=True)
    return time.process_time() - begin, [logprob for logprob, _ in answers]


def beside(ours: PunaLM, theirs: HFLM, questions: list[list[Any]], rounds: int, count: int) -> None:
    pairs, apart = [], 0.0
    for number in range(rounds + 1):
        burst = questions[number * count : (number + 1) * count]
        requests = [request for question in burst for request in question]
        if number == 0:  # to wake up
            requests = requests[:_ENDINGS]
        sides = (ours, theirs) if number % 2 else (theirs, ours)
        found = {side: seconds(side, requests) for side in sides}
        (mine, logprobs), (other, expected) = found[ours], found[theirs]
        apart = max(apart, *(abs(a - b) for a, b in zip(logprobs, expected, strict=True)))
        if number:
            pairs.append((mine / count, other / count))
            print(f"    {mine / count:.2f} and {other / count:.2f} s a question", flush=True)
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print(
        f"  medians: Puna {mine:.2f} s, hf {other:.2f} s a question, {ratio:.1f} times faster; "
        f"log-likelihoods at most {apart:.1e} apart",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with arc_challenge/")
    parser.add_argument("--tokenizer", type=Path, required=True, help="Llama 2's, of 32,000 pieces")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=2, help="of a burst")
    parser.add_argument("--whole", action="store_true", help="all questions, with Puna alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        vocabulary = load_vocabulary(args.tokenizer)
        checkpoint = random_checkpoint(SHAPE).with_vocabulary(vocabulary)
        save_checkpoint(checkpoint, folder / "hf", "hf", dtype="f32")
        save_checkpoint(checkpoint, folder / "f32.gguf", "gguf", dtype="f32")
        ours = PunaLM(LLM(folder / "f32.gguf", num_threads=1, kv_tokens=1 << 14))
        theirs = HFLM(
            pretrained=AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(folder / "hf"),
            batch_size=1,
            device="cpu",
        )
        million = SHAPE.num_parameters / 1e6
        print(f"{million:.0f}M, float32, 1 thread, {args.rounds} bursts", flush=True)
        for shared in (False, True):
            questions = questions_of(args.data, shared=shared)
            print(f"  shots {'shared' if shared else 'of each question its own'}", flush=True)
            beside(ours, theirs, questions, args.rounds, args.questions)
            if shared and args.whole:
                ours.llm.engine.weights_changed()  # forgets what was run
                requests = [request for question in questions for request in question]
                took, _ = seconds(ours, requests)
                print(f"  all {len(questions)} questions with Puna: {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
