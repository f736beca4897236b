"""schemathesis asks all that the API's document allows, and much that it does not.

Answers must be as documented, and none may be a 500. What is refused for its meaning alone
(`max_tokens` beyond the context) is no fault, so the check that all valid bodies are accepted is
off.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serve.servers import puna_serve

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
]


@dataclass(frozen=True)
class Run:
    """What schemathesis did: requests, and what it says."""

    requests: int
    passed: bool
    output: str


def run(url: str, *arguments: str, folder: Path) -> Run:
    """Runs schemathesis against a server."""
    command = [
        str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json",
        "--checks", ",".join(CHECKS), "--continue-on-failure", "--no-color",
        "--warnings", "off", "--generation-database", "none", *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = re.search(r"(\d+) generated", done.stdout)
    return Run(int(found[1]) if found else 0, done.returncode == 0, done.stdout + done.stderr)


def statuses(log: Path) -> dict[int, int]:
    """How often each status was answered, by the access log."""
    counts: dict[int, int] = {}
    for line in log.read_text().splitlines():
        if line.startswith("{"):
            status = json.loads(line)["status"]
            counts[status] = counts.get(status, 0) + 1
    return counts


def test_a_short_run_finds_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with puna_serve("--max-new-tokens", "4", log=log) as server:
        found = run(
            server.url, "--seed", "1", "-n", "10", "--phases", "coverage,fuzzing", folder=tmp_path
        )
    assert found.passed, found.output
    counts = statuses(log)
    assert found.requests > 500 and counts[200] > 100 and counts[400] > 100
    assert max(counts) < 500, counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_requests_without_a_500(tmp_path: Path) -> None:
    log, requests, seed = tmp_path / "log", 0, 1
    with puna_serve("--max-new-tokens", "4", log=log) as server:
        while requests < 20_000:
            found = run(server.url, "--seed", str(seed), "-n", "500", folder=tmp_path)
            assert found.passed, found.output
            requests, seed = requests + found.requests, seed + 1
            print(f"{requests} requests", statuses(log))
    counts = statuses(log)
    assert sum(counts.values()) >= 20_000 and max(counts) < 500, counts
