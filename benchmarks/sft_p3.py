"""Exact match on P3 templates that were never trained on, before and after `puna sft`.

    python benchmarks/sft_p3.py P3 OUT [--dialogs 3000] [--questions 500] [--epochs 2]
                                [--learning-rate 1e-3] [--max-characters 500] [--device cpu]

P3 is a .jsonl of `prompt`, `completion` and `template` (also .zst). A template is held out if a
digest of its name says so, one in eight. Records whose prompt is longer than --max-characters or
was there before are left out; of the rest, --dialogs of the other templates are trained on and
--questions of the held-out ones asked, both drawn by a fixed seed. So the way of asking is new;
a text that is asked about may be in a question of another template too.

Answers are greedy, in the chat format, and count where they are the completion but for space around
it. Beside base and tuned model stands the best constant: the completion that the training records
have most often. Intervals are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from puna.chat import TAGS
from puna.commands.models import resolve
from puna.data.instructions import END_OF_TEXT
from puna.data.text import records
from puna.engine.llm import LLM
from puna.engine.params import SamplingParams
from puna.evaluate.wilson import wilson

_HELD_OUT = 8  # one template in so many
_SEED = 0
_MAX_ANSWER = 32  # tokens; a longer one is wrong


def is_held_out(template: str) -> bool:
    return hashlib.sha256(template.encode()).digest()[0] % _HELD_OUT == 0


def read(path: Path, max_characters: int) -> tuple[list[Any], list[Any]]:
    """Records of the templates to train on, and of those held out; each prompt once."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    seen: set[str] = set()
    for record in records(path):
        prompt = record["prompt"].strip()
        usable = prompt and record["completion"].removesuffix(END_OF_TEXT).strip()
        if not usable or prompt in seen or len(prompt) > max_characters:
            continue
        if any(tag in prompt for tag in TAGS):
            continue
        seen.add(prompt)
        sides[is_held_out(record["template"])].append(record)
    for side in sides:
        random.Random(_SEED).shuffle(side)
    return sides


def target(record: Any) -> str:
    return record["completion"].removesuffix(END_OF_TEXT).strip()


def exact_match(model: str, questions: Sequence[Any], device: str) -> int:
    """How many greedy answers are right."""
    llm = LLM(resolve(model), device=device)
    params = SamplingParams(temperature=0, max_tokens=_MAX_ANSWER)
    dialogs = [[{"role": "user", "content": record["prompt"]}] for record in questions]
    answers = llm.chat(dialogs, params)
    pairs = zip(answers, questions, strict=True)
    return sum(answer.outputs[0].text.strip() == target(record) for answer, record in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("p3", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="cria")
    parser.add_argument("--dialogs", type=int, default=3000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--max-characters", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    trained, held_out = read(args.p3, args.max_characters)
    trained, questions = trained[: args.dialogs], held_out[: args.questions]
    names = {record["template"] for record in trained}
    assert not names & {record["template"] for record in questions}
    data = args.out / "trained.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in trained), encoding="utf-8")
    options = ["--model", args.model, "--device", args.device]
    for name in ("epochs", "learning_rate", "batch_size", "context_length"):
        options += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    run = args.out / "run"
    command = [sys.executable, "-m", "puna", "sft", str(data), "--out", str(run), *options]
    subprocess.run(command, check=True)
    constant, _ = Counter(map(target, trained)).most_common(1)[0]
    right = {
        "base": exact_match(args.model, questions, args.device),
        "tuned": exact_match(str(run), questions, args.device),
        f"always {constant!r}": sum(target(record) == constant for record in questions),
    }
    print(
        f"{len(trained)} dialogs of {len(names)} templates; {len(questions)} questions of "
        f"{len({record['template'] for record in questions})} others"
    )
    for name, count in right.items():
        low, high = wilson(count, len(questions))
        share = count / len(questions)
        print(f"{name:<24}{count:>5}  {share:.1%}  [{low:.1%}, {high:.1%}]")
    (args.out / "result.json").write_text(json.dumps(right) + "\n")


if __name__ == "__main__":
    main()
