"""Llama 2's chat format against a plain retelling of it and Hugging Face's template."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tokenizers

from puna.chat import TAGS, Message, encode_dialog, fit, open_turn_text
from puna.tokenizer import Tokenizer
from puna.tokenizer.json_file import write_json
from puna.tokenizer.sentencepiece_model import read_model

# The template of meta-llama/Llama-2-7b-chat-hf's tokenizer_config.json.
TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

SYSTEM = Message("system", "You are a llama.\n\nAnswer  briefly.\n")
DIALOGS = {
    "one question": [Message("user", "Who are you?")],
    "spaces around": [Message("user", "\n  Who\n are  you? \t")],
    "empty": [Message("user", "")],
    "answered": [Message("user", "Hi!"), Message("assistant", "  A llama says hi.\n")],
    "system": [SYSTEM, Message("user", " What do you eat? ")],
    "system, two turns": [
        SYSTEM,
        Message("user", "What do you eat?"),
        Message("assistant", "Grass, 12 kg."),
        Message("user", "And 🦙\nthe others?"),
    ],
    "three turns": [
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", ""),
        Message("user", "five"),
        Message("assistant", "</s> is not the end"),
    ],
}


@pytest.fixture(params=["trained", "llama"])
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    if request.param == "trained":
        return tokenizer
    shared: Path = request.getfixturevalue("shared")
    return Tokenizer(read_model((shared / "tokenizer" / "tokenizer.model").read_bytes()))


def retold(tokenizer: Tokenizer, dialog: list[Message]) -> tuple[list[int], list[bool]]:
    """What the format says, turn by turn, with nothing shared with `puna.chat`."""
    texts = [message.content for message in dialog]
    if dialog[0].role == "system":
        system = texts.pop(0)
        texts[0] = "<<SYS>>\n" + system + "\n<</SYS>>\n\n" + texts[0]
    ids: list[int] = []
    mask: list[bool] = []
    for at in range(0, len(texts), 2):
        question = "[INST] " + texts[at].strip() + " [/INST]"
        num_question = 1 + len(tokenizer.encode(question))
        if at + 1 == len(texts):
            turn = [1, *tokenizer.encode(question)]
        else:
            turn = [1, *tokenizer.encode(question + " " + texts[at + 1].strip() + " "), 2]
        ids += turn
        mask += [False] * num_question + [True] * (len(turn) - num_question)
    return ids, mask


@pytest.mark.parametrize("dialog", DIALOGS.values(), ids=DIALOGS.keys())
def test_ids_and_mask_equal_the_format_retold(
    any_tokenizer: Tokenizer, dialog: list[Message]
) -> None:
    encoded = encode_dialog(any_tokenizer, dialog)
    assert (encoded.ids, encoded.loss_mask) == retold(any_tokenizer, dialog)


@pytest.mark.parametrize("name", DIALOGS)
def test_ids_equal_hugging_faces_template(any_tokenizer: Tokenizer, name: str) -> None:
    # The library takes a control id's name in a message for the id; Puna must not.
    dialog = [Message(m.role, m.content.replace("</s>", "< /s>")) for m in DIALOGS[name]]
    messages: list[Any] = [{"role": m.role, "content": m.content} for m in dialog]
    text = jinja2.Template(TEMPLATE).render(messages=messages, bos_token="<s>", eos_token="</s>")
    library = tokenizers.Tokenizer.from_str(write_json(any_tokenizer.vocabulary).decode())
    expected = library.encode(text, add_special_tokens=False).ids
    assert encode_dialog(any_tokenizer, dialog).ids == expected


@pytest.mark.parametrize("dialog", DIALOGS.values(), ids=DIALOGS.keys())
def test_one_bos_and_one_eos_a_turn(tokenizer: Tokenizer, dialog: list[Message]) -> None:
    encoded = encode_dialog(tokenizer, dialog)
    roles = [message.role for message in dialog]
    assert encoded.ids.count(1) == roles.count("user")
    assert encoded.ids.count(2) == roles.count("assistant")
    assert encoded.ids[0] == 1
    ends = [at + 1 for at, token in enumerate(encoded.ids) if token == 2]
    assert all(encoded.ids[at] == 1 for at in ends if at < len(encoded.ids))


def test_only_answers_are_learned(tokenizer: Tokenizer) -> None:
    encoded = encode_dialog(tokenizer, DIALOGS["three turns"])
    learned = [i for i, wanted in zip(encoded.ids, encoded.loss_mask, strict=True) if wanted]
    assert learned.count(2) == 3 and 1 not in learned
    assert tokenizer.decode(learned) == "two    </s> is not the end "
    assert not any(encode_dialog(tokenizer, DIALOGS["one question"]).loss_mask)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("forger", range(4))
def test_forged_tags_are_refused_in_every_message(
    tokenizer: Tokenizer, tag: str, forger: int
) -> None:
    dialog = list(DIALOGS["system, two turns"])
    dialog[forger] = Message(dialog[forger].role, f"then{tag}and")
    with pytest.raises(ValueError, match=f"the {dialog[forger].role} message contains"):
        encode_dialog(tokenizer, dialog)


def test_the_tags_are_metas() -> None:
    assert set(TAGS) == {"[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"}
    assert open_turn_text(" hello ") == "[INST] hello [/INST]"


@pytest.mark.parametrize(
    "roles",
    [
        "",
        "system",
        "assistant",
        "user user",
        "user assistant assistant",
        "assistant user",
        "user system",
        "system system user",
        "system assistant user",
        "tool",
        "User",
    ],
)
def test_roles_out_of_order_are_refused(tokenizer: Tokenizer, roles: str) -> None:
    dialog = [Message(role, "x") for role in roles.split()]
    with pytest.raises(ValueError, match="beginning with user; this one goes: "):
        encode_dialog(tokenizer, dialog)


@pytest.mark.parametrize("system", [[], [SYSTEM]], ids=["plain", "system"])
@pytest.mark.parametrize("answered", [False, True], ids=["open", "answered"])
def test_fit_drops_whole_old_turns(
    tokenizer: Tokenizer, system: list[Message], answered: bool
) -> None:
    generator = random.Random(4)
    turns = []
    for number in range(6):
        text = " ".join(["llama"] * generator.randrange(1, 9))
        turns += [Message("user", f"{number}: {text}"), Message("assistant", text)]
    if not answered:
        turns.pop()
    # What must be kept is the longest end of the dialog that fits.
    starts = range(0, len(turns), 2)
    sizes = {at: len(encode_dialog(tokenizer, [*system, *turns[at:]]).ids) for at in starts}
    for max_tokens in range(min(sizes.values()), max(sizes.values()) + 2):
        start = min(at for at in starts if sizes[at] <= max_tokens)
        kept, encoded = fit(tokenizer, [*system, *turns], max_tokens)
        assert kept == [*system, *turns[start:]]
        assert encoded == encode_dialog(tokenizer, kept)
    with pytest.raises(ValueError, match=f"{min(sizes.values()) - 1} are left in the context"):
        fit(tokenizer, [*system, *turns], min(sizes.values()) - 1)
