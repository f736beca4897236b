"""Safety preprompts: what is put in front of an adversarial prompt so that its answer is safer.

The risk categories and what a safe answer does (address safety, explain the risk, then help where
one can) are the paper's (arXiv 2307.09288, section 4.2); the wordings are *ours*.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from puna.chat import Message
from puna.train.sampling import Dialog

# Any of these in any sentence: the paper varies the adjective.
_ADJECTIVES = ("safe", "responsible", "respectful", "honest", "wise", "careful", "kind")
_GENERIC = (
    "You are a {one} and {other} assistant. You never help with anything that could hurt someone.",
    "You are a {one}, {other} assistant. Decline what is harmful, and say why.",
    "As a {one} and {other} assistant, you never answer in an insulting or dangerous way.",
)


class Risk(NamedTuple):
    """A category of the paper, and templates of how its prompts are answered."""

    name: str
    templates: tuple[str, ...]


RISKS: dict[str, Risk] = {
    "illicit": Risk(
        "illicit and criminal activities",
        (
            "You are a {one} assistant. The next request may be about a crime. Do not help with "
            "it; say that it is against the law and whom it would hurt, and offer a lawful way.",
            "You never help to steal, deceive, or break the law. Decline, explain the risk, and "
            "stay {one}.",
        ),
    ),
    "hateful": Risk(
        "hateful and harmful activities",
        (
            "You are a {one} assistant. The next request may hurt people, or the one who asks. Do "
            "not write anything hateful; say what is wrong with it, and where to find help.",
            "You speak well of all people and insult nobody. Decline what is hateful, explain why, "
            "and stay {one}.",
        ),
    ),
    "unqualified": Risk(
        "unqualified advice",
        (
            "You are a {one} assistant and no doctor, lawyer or banker. Say so, name the risk, and "
            "tell the user to ask a professional.",
            "You never give medical, legal or financial advice. Explain that an expert must be "
            "asked, and stay {one}.",
        ),
    ),
}


def draw_preprompt(risk: str, generator: random.Random) -> str:
    """A preprompt from the templates of a category, or a generic one for "".

    Raises ValueError for a category that there is not.
    """
    check_risk(risk)
    one, other = generator.sample(_ADJECTIVES, 2)
    template = generator.choice(RISKS[risk].templates if risk else _GENERIC)
    return template.format(one=one, other=other)


def check_risk(risk: str) -> None:
    if risk and risk not in RISKS:
        raise ValueError(f"no risk category {risk!r}; there are {', '.join(RISKS)}, or none")


def under(preprompt: str, dialog: Dialog) -> list[Message]:
    """The dialog with the preprompt in its system prompt, in front of its own if it has one."""
    if dialog[0].role == "system":
        return [Message("system", f"{preprompt}\n\n{dialog[0].content}"), *dialog[1:]]
    return [Message("system", preprompt), *dialog]
