"""200 real questions of each of the leaderboard's tasks: Puna against lm-eval with transformers.

The same weights in float32, as a Hugging Face folder and as GGUF; asked as a base model and in
dialogs. Contexts of 512 cut most prompts, on both sides. Of these pieces an ending takes hundreds,
and float32 adds up: where both are farthest apart, and wherever that is more than may be, float64
says which is off. stories260K takes minutes, the shipped model an hour.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.models.huggingface import HFLM

from puna.engine.llm import LLM
from puna.evaluate.harness.running import run
from puna.evaluate.results import read_samples
from puna.evaluate.tasks.table import task_of
from puna.hub.locate import shipped_path
from tests.evaluate.float64 import Float64
from tests.evaluate.lm_eval_hf import (
    asked_of_transformers,
    differences,
    transformers_of,
    write_both,
)
from tests.evaluate.test_harness import LEADERBOARD, settings_of, watch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(4 * 3600)]


MODELS = ("stories260K", "cria")
TOLERANCE = 1e-4  # of a log-likelihood
FARTHEST = 8  # endings that are asked in float64 in any case


@pytest.fixture(scope="module", params=MODELS)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared: Path
) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    trained_elsewhere = shared / "weights/stories260K/stories260K.bin"
    write_both(shipped_path("cria") if request.param == "cria" else trained_elsewhere, path)
    return path


@pytest.fixture(scope="module")
def transformers(folder: Path) -> HFLM:
    return transformers_of(folder)


@pytest.mark.parametrize("name", LEADERBOARD)
@pytest.mark.parametrize("chat", [False, True], ids=["base", "chat"])
def test_two_hundred_questions(
    shared: Path, folder: Path, transformers: HFLM, tmp_path: Path, name: str, chat: bool
) -> None:
    settings = settings_of(
        folder, tasks=(name,), data=str(shared / "eval"), questions=200, chat=chat
    )
    theirs = asked_of_transformers(transformers, name, settings)
    asked = [pair for found in theirs for pair in found["arguments"]]
    answers = [answer[0] for found in theirs for answer in found["filtered_resps"]]
    exact = Float64(folder / "hf")
    for source in ("hf", "f32.gguf"):
        run(settings, LLM(folder / source), tmp_path / source, watch)
        ours = list(read_samples(tmp_path / source, name))
        assert len(ours) == 200
        apart = differences(ours, theirs, task_of(name).metric)
        mine = [logprob for sample in ours for logprob in sample.logprobs or ()]
        ranked = sorted(range(len(apart)), key=apart.__getitem__, reverse=True)
        chosen = [i for at, i in enumerate(ranked) if at < FARTHEST or apart[i] > TOLERANCE]
        off = []
        for index in chosen:
            context, ending = transformers._encode_pair(*asked[index])
            room = transformers.max_length + 1 - len(ending)
            right = exact.logprob(context[-room:], ending)
            off.append((abs(mine[index] - right), abs(answers[index] - right)))
        print(
            f"{folder.name} {name} {'chat' if chat else 'base'} {source}: {len(apart)} endings at "
            f"most {max(apart):.2e} apart; of {len(chosen)} from float64: Puna "
            f"{max(own for own, _ in off):.2e}, transformers {max(other for _, other in off):.2e}"
        )
        assert max(own for own, _ in off) < TOLERANCE
