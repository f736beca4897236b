"""`puna chat`: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from puna.chat import Message, encode_dialog, fit
from puna.commands.models import load, named_adapters, resolve
from puna.commands.options import draft_option, lora_option, model_options, sampling_options
from puna.engine.params import DEFAULT_MAX_TOKENS, SamplingParams
from puna.formats.files import atomic_file

if TYPE_CHECKING:
    from puna.engine.llm import LLM

_MIN_ANSWER = 32  # tokens of the context that are kept free for the answer, at least


@dataclass
class Conversation:
    """A dialog with a model; `ask` extends it."""

    llm: LLM
    sampling: SamplingParams
    dialog: list[Message] = field(default_factory=list)
    adapter: str | None = None

    def ask(self, text: str, say: Callable[[str], None]) -> int:
        """Answers `text`, calling `say` with each piece; returns how many old turns were dropped.

        Interrupted, it keeps what was said so far. Raises ValueError, the dialog unchanged, for
        text that forges a tag or does not fit the context.
        """
        asked = [*self.dialog, Message("user", text)]
        context = self.llm.config.context_length
        wanted = self.sampling.max_tokens or DEFAULT_MAX_TOKENS
        room = min(wanted, max(_MIN_ANSWER, context // 4))
        kept, encoded = fit(self.llm.tokenizer, asked, context - room)
        # The context ends an answer as well as the limit does.
        limit = min(wanted, context - len(encoded.ids))
        answer: list[str] = []
        try:
            params = replace(self.sampling, max_tokens=limit)
            for delta in self.llm.stream(kept, params, adapter=self.adapter):
                answer.append(delta.text)
                say(delta.text)
        finally:
            self.dialog = [*kept, Message("assistant", "".join(answer).strip())]
        return (len(asked) - len(kept)) // 2

    def reset(self) -> None:
        """Forgets all turns; the system prompt stays."""
        self.dialog = [message for message in self.dialog[:1] if message.role == "system"]

    def set_system(self, text: str) -> None:
        """Begins anew under another system prompt, or none. ValueError if it forges a tag."""
        dialog = [Message("system", text)] if text else []
        encode_dialog(self.llm.tokenizer, [*dialog, Message("user", "")])
        self.dialog = dialog


@click.command()
@click.argument("name", metavar="[MODEL]", required=False)
@model_options("cria-chat")
@sampling_options
@draft_option
@lora_option
@click.option("--system", default="", metavar="TEXT", help="System prompt.")
def chat(
    name: str | None,
    model: str,
    tokenizer: Path | None,
    device: str,
    dtype: str,
    kv_dtype: str,
    sampling: SamplingParams,
    draft: str | None,
    adapters: tuple[str, ...],
    system: str,
) -> None:
    """Talk with MODEL in Llama 2's chat format. /help lists what can be typed.

    Reads standard input line by line where that is no terminal.
    """
    if name is not None:
        if _is_given("model"):
            raise ValueError("MODEL is given twice: by itself and with --model")
        model = name
    checkpoint = resolve(model, tokenizer)
    loras = named_adapters(adapters)
    llm = load(
        checkpoint, device=device, dtype=dtype, kv_dtype=kv_dtype, draft=draft, adapters=loras
    )
    conversation = Conversation(llm, sampling, adapter=next(iter(loras), None))
    conversation.set_system(system)
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  # line editing and history for input()

        click.secho(f"{model}: type a message, /help for commands, Ctrl-D to leave.", dim=True)
    while (line := _read_line(interactive)) is not None:
        if line.startswith("/"):
            if not _command(conversation, line):
                break
        elif line.strip():
            _answer(conversation, line)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def _read_line(interactive: bool) -> str | None:
    try:
        return input("> " if interactive else "")
    except EOFError:
        if interactive:
            click.echo()
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"the message is not UTF-8 (byte {error.start})") from None


def _answer(conversation: Conversation, text: str) -> None:
    try:
        dropped = conversation.ask(text, lambda piece: click.echo(piece, nl=False))
        click.echo()
        if dropped:
            click.secho(f"({dropped} oldest turns no longer fit the context)", dim=True, err=True)
    except KeyboardInterrupt:
        click.secho("\n(stopped)", dim=True, err=True)
    except ValueError as error:
        click.echo(f"{error}", err=True)


def _reset(conversation: Conversation, argument: str) -> None:
    conversation.reset()
    click.echo("The conversation begins anew.", err=True)


def _system(conversation: Conversation, argument: str) -> None:
    conversation.set_system(argument)
    what = "A new system prompt" if argument else "No system prompt"
    click.echo(f"{what}; the conversation begins anew.", err=True)


def _save(conversation: Conversation, argument: str) -> None:
    if not argument:
        raise ValueError("give a file: /save conversation.json")
    messages = [asdict(message) for message in conversation.dialog]
    with atomic_file(Path(argument)) as file:
        text = json.dumps({"messages": messages}, indent=2, ensure_ascii=False)
        file.write(f"{text}\n".encode())
    click.echo(f"wrote {argument}", err=True)


def _help(conversation: Conversation, argument: str) -> None:
    for name, (_, text) in _COMMANDS.items():
        click.echo(f"{name:<16}{text}", err=True)


_COMMANDS: dict[str, tuple[Callable[[Conversation, str], None], str]] = {
    "/reset": (_reset, "forget the conversation, keep the system prompt"),
    "/system": (_system, "/system TEXT: begin anew under this system prompt (or none)"),
    "/save": (_save, "/save FILE: write the conversation as JSON"),
    "/help": (_help, "this; Ctrl-C stops an answer; Ctrl-D or /quit leaves"),
}


def _command(conversation: Conversation, line: str) -> bool:
    """Does what `line` says; False to leave."""
    name, _, argument = line.partition(" ")
    if name in ("/quit", "/exit"):
        return False
    try:
        if name not in _COMMANDS:
            raise ValueError(f"no command {name}; /help lists them")
        _COMMANDS[name][0](conversation, argument.strip())
    except (ValueError, OSError) as error:
        click.echo(f"{error}", err=True)
    return True
