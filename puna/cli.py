"""The command line: one table of commands, each imported only when it is called."""

from __future__ import annotations

import os
import sys

import click

from puna import __version__
from puna.commands.lazy import Entry, LazyGroup

COMMANDS: dict[str, Entry] = {
    "chat": Entry("puna.commands.chat:chat", "Talk with a model.", "Use"),
    "complete": Entry("puna.commands.complete:complete", "Continue a text.", "Use"),
    "serve": Entry("puna.commands.serve:serve", "Answer OpenAI's clients over HTTP.", "Use"),
    "list": Entry("puna.commands.list_models:list_models", "Models, here and known.", "Files"),
    "pull": Entry("puna.commands.pull:pull", "Download a model from a hub.", "Files"),
    "rm": Entry("puna.commands.rm:rm", "Delete a pulled model.", "Files"),
    "cache": Entry("puna.commands.cache:cache", "What large models keep to start fast.", "Files"),
    "info": Entry("puna.commands.info:info", "What a model file is.", "Files"),
    "convert": Entry("puna.commands.convert:convert", "Rewrite a model in a format.", "Files"),
    "quantize": Entry(
        "puna.commands.quantize:quantize", "Make a model smaller, with calibration.", "Files"
    ),
    "perplexity": Entry(
        "puna.commands.perplexity:perplexity", "How well models predict a text.", "Files"
    ),
    "data": Entry("puna.commands.data:data", "Clean and tokenize a corpus.", "Raise"),
    "tokenizer": Entry("puna.commands.tokenizer:tokenizer", "Train or try a tokenizer.", "Raise"),
    "pretrain": Entry("puna.commands.pretrain:pretrain", "Train a model on text.", "Raise"),
    "sft": Entry("puna.commands.sft:sft", "Teach a model to answer, from dialogs.", "Raise"),
    "compare": Entry("puna.commands.compare:compare", "People compare two answers.", "Raise"),
    "reward": Entry("puna.commands.reward:reward", "Train a model of what people prefer.", "Raise"),
    "rejection-sampling": Entry(
        "puna.commands.rejection_sampling:rejection_sampling",
        "Keep the best of a model's answers to learn from.",
        "Raise",
    ),
    "ppo": Entry("puna.commands.ppo:ppo", "Train a model towards what is preferred.", "Raise"),
    "dpo": Entry("puna.commands.dpo:dpo", "The same from comparisons alone.", "Raise"),
    "gatt": Entry("puna.commands.gatt:gatt", "Make dialogs that keep to an instruction.", "Raise"),
    "safety": Entry(
        "puna.commands.safety:safety", "Make safer answers; find unsafe ones.", "Raise"
    ),
    "align": Entry("puna.commands.align:align", "All of these, by one recipe.", "Raise"),
    "tasks": Entry("puna.commands.tasks:tasks", "Instructions that a program checks.", "Raise"),
    "eval": Entry("puna.commands.eval:eval_", "Score a model on benchmarks.", "Judge"),
    "plan": Entry("puna.commands.plan:plan", "What a run takes, before paying for it.", "Plan"),
    "bench": Entry("puna.commands.bench:bench", "How fast a model runs here.", "Plan"),
}


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: puna chat. Each command has its own --help.",
)
@click.version_option(__version__, prog_name="puna", message="%(prog)s %(version)s")
def puna() -> None:
    """Puna: the whole Llama 2 system, from text to talking."""


def main() -> None:
    """The `puna` program. What a user can cause is one line on stderr and exit code 2."""
    try:
        puna.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.UsageError as error:
        usage = error.ctx.command_path if error.ctx else "puna"
        _fail(f"{error.format_message()} (see {usage} --help)")
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):
        # A new line, so that the shell's prompt does not start behind half an answer.
        click.echo(err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone: nothing more to say, and nothing to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "puna":
            raise
        _fail(f"this needs {error.name}, which is not installed: pip install 'puna[train]'")
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except ValueError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    # Text in it may come from a damaged file: nothing of that may steer the terminal.
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    click.echo(f"puna: error: {shown}", err=True)
    sys.exit(2)
