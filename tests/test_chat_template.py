"""The Jinja text of the chat format says what `encode_dialog` does, to transformers too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from puna.chat import LLAMA2_TEMPLATE, Message, encode_dialog
from puna.formats import open_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers")

DIALOGS = [
    [("user", "  What is a llama? ")],
    [("system", "Be brief.\n"), ("user", "What is a llama?")],
    [("system", " Be brief."), ("user", "Hi"), ("assistant", " Hello. \n"), ("user", "Why?")],
    [("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "A llama.")],
]


@pytest.mark.parametrize("turns", DIALOGS)
def test_template_gives_the_same_ids(turns: list[tuple[str, str]], hf_folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(hf_folder)
    messages = [{"role": role, "content": content} for role, content in turns]
    ids = theirs.apply_chat_template(messages, tokenize=True, return_dict=False)
    ours = encode_dialog(
        open_checkpoint(hf_folder).tokenizer(), [Message(role, text) for role, text in turns]
    )
    assert ids == ours.ids


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from puna.commands.models import resolve

    folder = tmp_path_factory.mktemp("chat") / "hf"
    save_checkpoint(replace(resolve("cria"), chat_template=LLAMA2_TEMPLATE), folder, "hf")
    return folder
