"""What a build did: a record of every step and source, for programs and for the written report."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from puna.data.pipeline.personal import scrub
from puna.data.pipeline.settings import STEP_SETTINGS, Personal
from puna.data.pipeline.tally import Tally, read_tallies

_ALL_STEPS = ("read", *STEP_SETTINGS, "tokenize")
# Of the events, those that a reader asks for first.
_FOUND = {
    "characters of boilerplate": "boilerplate_characters",
    "emails replaced": "emails",
    "phones replaced": "phones",
    "ips replaced": "ips",
    "paragraphs cut": "contaminated_paragraphs",
}


def collect(folder: Path) -> dict[str, Any]:
    """The report of a build, also of one that is not finished; ValueError if there is none.

    Keys: `complete`, `sources` (licence, documents, characters, tokens, share of the mix), `steps`
    (by step and source: a `Tally`), `found` (totals), `examples` of what was dropped.
    """
    path = folder / "plan.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no build: there is no plan.json in it")
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged; build again in another folder") from None
    steps = {step: _by_source(folder / "tallies", step) for step in _ALL_STEPS}
    tasks = Counter(piece["source"] for piece in plan["pieces"])
    return {
        "complete": _is_complete(plan, folder),
        "sources": _sources(plan, steps, tasks),
        "found": _found(steps),
        "steps": {
            step: {source: _without_examples(tally) for source, tally in tallies.items()}
            for step, tallies in steps.items()
            if tallies
        },
        "examples": [
            {"step": step, "source": source} | example | {"excerpt": _scrubbed(example["excerpt"])}
            for step, tallies in steps.items()
            for source, tally in tallies.items()
            for example in tally.examples
        ],
    }


def _scrubbed(excerpt: str) -> str:
    """Without the addresses of a document that was dropped before they were looked for."""
    personal = Personal()
    replacements = {
        "emails": personal.email_replacement,
        "ips": personal.ip_replacement,
        "phones": personal.phone_replacement,
    }
    return scrub(excerpt, replacements)[0]


def _by_source(tallies: Path, step: str) -> dict[str, Tally]:
    totals: dict[str, Tally] = {}
    for tally in read_tallies(tallies, step):
        total = totals.setdefault(tally.source, Tally(step, tally.source))
        total.add(tally)
    return totals


def _is_complete(plan: dict[str, Any], folder: Path) -> bool:
    if plan["config"]["tokenize"]["enabled"]:
        return (folder / "tokens" / "manifest.json").exists()
    return len(list((folder / "documents").glob("*.jsonl.zst"))) == len(plan["pieces"])


def _sources(
    plan: dict[str, Any], steps: dict[str, dict[str, Tally]], tasks: Counter[str]
) -> dict[str, Any]:
    sources = {}
    for source in plan["config"]["sources"]:
        name = source["name"]
        seen = [tallies[name] for tallies in steps.values() if name in tallies]
        tokens = steps["tokenize"][name].events["tokens"] if name in steps["tokenize"] else 0
        sources[name] = {
            "licence": source["licence"],
            "kind": source["kind"],
            "files": tasks[name],
            "documents_in": seen[0].documents_in if seen else 0,
            "documents_out": seen[-1].documents_out if seen else 0,
            "characters_in": seen[0].characters_in if seen else 0,
            "characters_out": seen[-1].characters_out if seen else 0,
            "tokens": tokens,
            "upsample": source["upsample"],
        }
    all_tokens = sum(s["tokens"] for s in sources.values())
    mixed = sum(s["tokens"] * s["upsample"] for s in sources.values())
    for found in sources.values():
        found["share"] = found["tokens"] / all_tokens if all_tokens else 0.0
        found["weight"] = found["tokens"] * found["upsample"] / mixed if mixed else 0.0
    return sources


def _found(steps: dict[str, dict[str, Tally]]) -> dict[str, int]:
    def total(step: str, event: str) -> int:
        return sum(tally.events[event] for tally in steps[step].values())

    def dropped(step: str) -> int:
        return sum(tally.dropped.total() for tally in steps[step].values())

    found = {name: sum(total(step, event) for step in steps) for event, name in _FOUND.items()}
    found |= {"exact_duplicates": dropped("exact"), "near_duplicates": dropped("minhash")}
    found |= {"contaminated_documents": dropped("decontaminate")}
    return found | {"tokens": total("tokenize", "tokens")}


def _without_examples(tally: Tally) -> dict[str, Any]:
    values = tally.to_dict()
    return {key: values[key] for key in values if key not in ("examples", "step", "source")}
