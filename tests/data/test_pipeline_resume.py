"""Builds that are killed go on, to the same result."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.commands.models import named_vocabulary
from puna.data.pipeline.build import build
from puna.data.pipeline.config import read_config
from puna.data.pipeline.report import collect
from puna.tokenizer.sentencepiece_model import write_model
from tests.data.corpus import CONFIG, write_corpus


def results(out: Path) -> dict[str, str]:
    """What a build is for, by the hash of every file."""
    files = [path for name in ("documents", "tokens") for path in (out / name).rglob("*")]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def processes_of(session: int) -> list[int]:
    """Those that run yet in a session (field 6 of /proc/PID/stat; a zombie runs no more)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_build_goes_on(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    command = [sys.executable, "-m", "puna", "data", "build", str(config)]
    command += ["--out", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    completed = "logs/read-*/completions/*"
    while not (done := sorted((tmp_path / "out").glob(completed))):
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while left := processes_of(process.pid):  # its workers end with it
        assert time.monotonic() < until, left
        time.sleep(0.05)
    report = collect(tmp_path / "out")
    assert not report["complete"]
    times = {path: path.stat().st_mtime_ns for path in done}

    tokenizer = write_model(named_vocabulary("cria"))
    assert build(read_config(config), tmp_path / "out", tokenizer)
    assert build(read_config(config), tmp_path / "undisturbed", tokenizer)
    assert {path: path.stat().st_mtime_ns for path in done} == times
    assert results(tmp_path / "out") == results(tmp_path / "undisturbed")
    assert collect(tmp_path / "out") == collect(tmp_path / "undisturbed")


def test_another_configuration_or_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("One story.\n<>\nAnother.")
    config = tmp_path / "corpus.toml"
    table = CONFIG[CONFIG.index('[[source]]\nname = "more"') : CONFIG.index("[steps]")]
    config.write_text(table + "[steps]\nlanguage = false\n")
    out = tmp_path / "out"
    assert build(read_config(config), out, write_model(named_vocabulary("cria")))
    assert build(read_config(config), out, None)
    config.write_text(table + "[steps]\nlanguage = true\n")
    with pytest.raises(ValueError, match=r"another configuration \(settings.more.language.enabled"):
        build(read_config(config), out, None)
    config.write_text(table + "[steps]\nlanguage = false\n[run]\nworkers = 2\n")
    assert build(read_config(config), out, None)
    (tmp_path / "more.txt").write_text("One more story.")
    with pytest.raises(ValueError, match=r"input changed since .*more\.txt"):
        build(read_config(config), out, None)


def test_two_builds_do_not_share_a_folder(tmp_path: Path) -> None:
    config = write_corpus(tmp_path)
    (tmp_path / "out").mkdir()
    holder = (
        "import fcntl, sys, time\n"
        f"file = open({str(tmp_path / 'out' / '.lock')!r}, 'w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"locked\n"
        with pytest.raises(ValueError, match="another build is at work in"):
            build(read_config(config), tmp_path / "out", None)
        process.communicate(b"")
