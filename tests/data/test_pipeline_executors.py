"""Ray and Slurm do what local processes do: the same documents, to the byte."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from puna.data.pipeline.build import build
from puna.data.pipeline.config import PipelineConfig, Run, config_from_dict
from puna.data.pipeline.report import collect
from tests.data.corpus import FRENCH, prose

# Runs jobs here, one task after the other in an array's order. A job whose dependency failed, or is
# unknown, is never run, as Slurm has it.
SBATCH = """#!/bin/bash
set -u
here={here}
n=$(( $(ls "$here"/jobs | wc -l) + 1 ))
for script; do :; done
cp "$script" "$here/jobs/$n"
state=COMPLETED
for argument in "$@" $(sed -n 's/^#SBATCH //p' "$script"); do
    case "$argument" in
        --dependency=*)
            for job in $(grep -o '[0-9]*' <<< "${{argument#*=}}"); do
                [ "$(cat "$here/states/$job" 2>/dev/null)" = COMPLETED ] || state=NEVER_RUN
            done ;;
        --export=*) offset=${{argument##*RUN_OFFSET=}} ;;
    esac
done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
if [ $state = COMPLETED ]; then
    for task in $(seq 0 "$last"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=${{offset:-0}} \\
            bash "$script" > "$here/output.$n.$task" 2>&1 || state=FAILED
    done
fi
echo $state > "$here/states/$n"
echo "Submitted batch job $n"
"""
SRUN = (
    '#!/bin/bash\nwhile [ "${1#-}" != "$1" ]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"\n'
)
SCONTROL = "#!/bin/sh\necho here\n"  # names of the nodes
OPTIONS = {"partition": "cpu", "time": "1:00:00", "qos": ""}


def corpus(folder: Path) -> PipelineConfig:
    """Two files, one document in both; what takes longest to import is off."""
    for name, texts in {"a": [prose(1), FRENCH, prose(2)], "b": [prose(3), prose(1)]}.items():
        (folder / f"{name}.txt").write_text("\n<>\n".join(texts))
    table = {"name": "s", "licence": "MIT", "path": ["?.txt"], "separator": "<>"}
    off = dict.fromkeys(("boilerplate", "gopher", "c4", "personal", "sites", "minhash"), False)
    return config_from_dict(
        {"source": [table], "steps": off, "tokenize": {"enabled": False}}, folder
    )


def hashes(out: Path) -> list[str]:
    files = sorted((out / "documents").glob("*"))
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of Slurm on the PATH, where the virtual environment's are not."""
    here = tmp_path / "cluster"
    for name in ("jobs", "states", "bin"):
        (here / name).mkdir(parents=True)
    commands = {"sbatch": SBATCH.format(here=here), "srun": SRUN, "scontrol": SCONTROL}
    for name, text in commands.items():
        (here / "bin" / name).write_text(text)
        (here / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    return here


def states(cluster: Path) -> dict[int, str]:
    return {int(p.name): p.read_text().strip() for p in (cluster / "states").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="runs bash with GNU's tools")
@pytest.mark.slow
def test_slurm_builds_what_local_processes_build(tmp_path: Path, cluster: Path) -> None:
    """`pytest -m slow tests/data/test_pipeline_executors.py`: every job is a new Python."""
    config = corpus(tmp_path)
    assert build(config, tmp_path / "local", None)
    run = Run("slurm", 2, OPTIONS)
    assert not build(replace(config, run=run), tmp_path / "slurm", None)
    assert len(states(cluster)) == 2 * 4 and set(states(cluster).values()) == {"COMPLETED"}
    assert hashes(tmp_path / "slurm") == hashes(tmp_path / "local") != []
    report = collect(tmp_path / "slurm")
    assert report == collect(tmp_path / "local") and report["complete"]
    assert report["found"]["exact_duplicates"] == 1
    assert not build(replace(config, run=run), tmp_path / "slurm", None)  # nothing left to do
    assert len(states(cluster)) == 2 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="runs bash with GNU's tools")
@pytest.mark.slow
def test_after_a_failed_job_none_is_run_and_the_next_submission_goes_on(
    tmp_path: Path, cluster: Path
) -> None:
    """`pytest -m slow tests/data/test_pipeline_executors.py`: every job is a new Python."""
    config = corpus(tmp_path)
    assert build(config, tmp_path / "local", None)
    config = replace(config, run=Run("slurm", 2, OPTIONS))
    whole = (tmp_path / "b.txt").stat()
    text = (tmp_path / "b.txt").read_bytes()
    (tmp_path / "b.txt").write_bytes(b"\xff" + text[1:])  # no UTF-8, of the same size
    os.utime(tmp_path / "b.txt", ns=(whole.st_atime_ns, whole.st_mtime_ns))
    assert not build(config, tmp_path / "slurm", None)
    assert states(cluster)[1] == "FAILED"
    assert set(states(cluster).values()) == {"FAILED", "NEVER_RUN"}
    report = collect(tmp_path / "slurm")
    assert not report["complete"] and report["sources"]["s"]["documents_in"] == 3
    (tmp_path / "b.txt").write_bytes(text)
    os.utime(tmp_path / "b.txt", ns=(whole.st_atime_ns, whole.st_mtime_ns))
    assert not build(config, tmp_path / "slurm", None)
    assert hashes(tmp_path / "slurm") == hashes(tmp_path / "local") != []


RAY = """
import ray, sys
from dataclasses import replace
from pathlib import Path
from puna.data.pipeline.build import build
from puna.data.pipeline.config import Run
from tests.data.test_pipeline_executors import corpus

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
folder = Path(sys.argv[1])
run = Run("ray", 2, {"mem_per_cpu_gb": 0.5})
assert build(replace(corpus(folder), run=run), folder / "ray", None)
ray.shutdown()
"""


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.slow
def test_ray_builds_what_local_processes_build(tmp_path: Path) -> None:
    """`pytest -m slow tests/data/test_pipeline_executors.py`: it starts a cluster here."""
    assert build(corpus(tmp_path), tmp_path / "local", None)
    done = subprocess.run(
        [sys.executable, "-c", RAY, tmp_path], capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "local") != []
    assert collect(tmp_path / "ray") == collect(tmp_path / "local")


def test_without_ray_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    config = replace(corpus(tmp_path), run=Run("ray"))
    with pytest.raises(ValueError, match=r"needs Ray: pip install 'puna\[ray\]'"):
        build(config, tmp_path / "out", None)
