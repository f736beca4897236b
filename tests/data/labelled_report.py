"""The report that the labels of labelled.txt ask for. Nothing here is of the pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.data.labelled import EVALUATION, OFF, SOURCES, STEPS, Labelled, kept, labelled


def expected_report(count_tokens: Callable[[str], int]) -> dict[str, Any]:
    """What `report.json` must say, of examples what and why; `count_tokens` of a text."""
    steps = {
        step: {
            source: _tally(step, source, count_tokens)
            for source in SOURCES
            if (source, step) not in OFF
        }
        for step in STEPS
    }
    return {
        "complete": True,
        "sources": _sources(steps),
        "found": _found(steps),
        "steps": steps,
        "examples": [
            {"step": step, "source": document.source, "reason": document.drop[1], "id": document.id}
            for step in STEPS
            for document in labelled()
            if document.drop is not None and document.drop[0] == step
        ],
    }


def _reaching(step: str, source: str) -> Iterator[Labelled]:
    at = STEPS.index(step)
    for document in labelled():
        gone = document.drop is not None and STEPS.index(document.drop[0]) < at
        if document.source == source and not gone:
            yield document


def _before(step: str) -> str:
    return STEPS[max(STEPS.index(step) - 1, 0)]


def _tally(step: str, source: str, count_tokens: Callable[[str], int]) -> dict[str, Any]:
    came = list(_reaching(step, source))
    went = [document for document in came if document.drop is None or document.drop[0] != step]
    characters_in = sum(len(document.after(_before(step))) for document in came)
    characters_out = sum(len(document.after(step)) for document in went)
    dropped: Counter[str] = Counter()
    characters: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for document in came:
        if document.drop is not None and document.drop[0] == step:
            dropped[document.drop[1]] += 1
            characters[document.drop[1]] += len(document.after(_before(step)))
            events += document.counts
        elif step in EVENTS:
            events += EVENTS[step](document)
    if step == "tokenize":
        events = Counter(tokens=sum(count_tokens(d.after(step)) for d in came), shards=1)
    return {
        "documents_in": len(came),
        "characters_in": characters_in,
        "documents_out": len(went),
        "characters_out": characters_out,
        "characters_removed": characters_in - characters_out - characters.total(),
        "dropped": dict(dropped),
        "characters_dropped": dict(characters),
        "events": dict(events),
    }


def _of_boilerplate(document: Labelled) -> Counter[str]:
    ink = sum(len("".join(text.split())) for _, text in document.marks("boilerplate"))
    return Counter({"characters of boilerplate": ink, "documents with boilerplate": int(ink > 0)})


def _of_c4(document: Labelled) -> Counter[str]:
    cut = [what for what, _ in document.marks("c4")]
    lines = document.after("gopher").count("\n") + 1
    return Counter(cut) + Counter({"line-total": lines, "line-kept": lines - len(cut)})


def _of_personal(document: Labelled) -> Counter[str]:
    counted = Counter(f"{what} replaced" for what, _ in document.marks("personal"))
    return counted + Counter({"documents with personal information": int(bool(counted))})


def _of_decontaminate(document: Labelled) -> Counter[str]:
    marks = document.marks("decontaminate")
    sets = [
        f"documents with {name}"
        for name, (question, _) in EVALUATION.items()
        if any(question in text.replace("\n", " ") for _, text in marks)
    ]
    cut = Counter({"paragraphs cut": len(marks), "documents cut": int(bool(marks))})
    return cut + Counter(sets)


# What is counted of a document that a step lets pass.
EVENTS: dict[str, Callable[[Labelled], Counter[str]]] = {
    "boilerplate": _of_boilerplate,
    "c4": _of_c4,
    "personal": _of_personal,
    "decontaminate": _of_decontaminate,
}


def _sources(steps: dict[str, Any]) -> dict[str, Any]:
    tokens = {source: steps["tokenize"][source]["events"]["tokens"] for source in SOURCES}
    mixed = {source: tokens[source] * SOURCES[source][2] for source in SOURCES}
    return {
        source: {
            "licence": licence,
            "kind": kind,
            "files": 1,
            "documents_in": steps["read"][source]["documents_in"],
            "documents_out": len(kept(source)),
            "characters_in": steps["read"][source]["characters_in"],
            "characters_out": sum(map(len, kept(source))),
            "tokens": tokens[source],
            "upsample": upsample,
            "share": tokens[source] / sum(tokens.values()),
            "weight": mixed[source] / sum(mixed.values()),
        }
        for source, (kind, licence, upsample, _) in SOURCES.items()
    }


def _found(steps: dict[str, Any]) -> dict[str, int]:
    def events(step: str, name: str) -> int:
        return sum(tally["events"].get(name, 0) for tally in steps[step].values())

    def drops(step: str) -> int:
        return sum(sum(tally["dropped"].values()) for tally in steps[step].values())

    return {
        "boilerplate_characters": events("boilerplate", "characters of boilerplate"),
        "emails": events("personal", "emails replaced"),
        "phones": events("personal", "phones replaced"),
        "ips": events("personal", "ips replaced"),
        "contaminated_paragraphs": events("decontaminate", "paragraphs cut"),
        "exact_duplicates": drops("exact"),
        "near_duplicates": drops("minhash"),
        "contaminated_documents": drops("decontaminate"),
        "tokens": events("tokenize", "tokens"),
    }
