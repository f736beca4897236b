"""docs/pretrain.sbatch on two machines that are one: two torchrun agents that meet on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from puna.tokenizer import Vocabulary
from puna.train.checkpoints import steps_saved
from puna.train.log import read_log
from tests.recipes.corpora import new_corpus

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "pretrain.sbatch"

# Slurm's part: starts what follows its own options once a machine.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for ((node = 0; node < SLURM_NNODES; node++)); do
    "$@" & started+=($!)
done
for one in "${started[@]}"; do wait "$one" || failed=1; done
exit ${failed:-0}
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two machines with one process each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {
        "PATH": path, "PORT": str(port), "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "two", "SLURM_GPUS_ON_NODE": "1", "SLURM_CPUS_ON_NODE": "1",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
    }  # fmt: skip


def test_the_script_runs_on_two_machines(
    tmp_path: Path, vocabulary: Vocabulary, slurm: dict[str, str]
) -> None:
    corpus, out = new_corpus(tmp_path / "corpus", vocabulary), tmp_path / "run"
    arguments = [
        corpus, "--model", "tiny", "--context-length", "16", "--steps", "2", "--batch-size", "4",
        "--held-out", "1", "--parallel", "fsdp=2",
    ]  # fmt: skip
    done = subprocess.run(
        ["bash", SCRIPT, out, *map(str, arguments)],
        cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert steps_saved(out) == [2]
    assert [record["tokens"] for record in read_log(out / "log.jsonl")] == [64, 128]
    assert done.stderr.count("try it: puna complete") == 1
    # Submitted again, it goes on.
    programs = Path(slurm["PATH"].split(os.pathsep)[0])
    (programs / "srun").write_text('#!/bin/bash\necho "$@"\n')
    again = subprocess.run(
        ["bash", SCRIPT, out, *map(str, arguments)],
        cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert again.stdout.endswith(f" -m puna pretrain --out {out} --resume\n")


def test_the_scripts_syntax_and_that_it_is_told_of() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], timeout=20).returncode == 0
    text = SCRIPT.read_text()
    page = (ROOT / "docs" / "pretraining.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("#     sbatch ")]
    assert line.removeprefix("#     ") in page
    # The page's torchrun lines have the script's options, and no others.
    options = {word for word in text.split() if word.startswith(("--nnodes", "--rdzv"))}
    assert options and all(option in page for option in options)
