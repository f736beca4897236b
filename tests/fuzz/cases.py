"""One case: a file of a whole model is damaged, and the model opened and read."""

from __future__ import annotations

import faulthandler
import random
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from puna.formats import open_checkpoint
from puna.formats.errors import FormatError
from tests.formats.conftest import assert_well_said
from tests.fuzz.mutations import Place, integer_places, mutate
from tests.fuzz.seeds import SEEDS

# What a case may take besides twice its files: what Python makes of a config, of two dozen
# tensors' names, shapes and readers, and of a vocabulary of 320 pieces.
ALLOWANCE = 256 * 1024  # bytes
SECONDS = 30  # after which a case hangs: the process is ended with a traceback


@dataclass(frozen=True, slots=True)
class Outcome:
    """`refusal` is the FormatError's text, `offence` what should never have happened."""

    peak: int
    allowed: int
    refusal: str = ""
    offence: str = ""


class Model:
    """A whole model in `folder`, one file of which differs from case to case."""

    def __init__(self, seed_name: str, folder: Path) -> None:
        self.seed_name, self.folder = seed_name, folder
        self.path = SEEDS[seed_name](folder)
        self.files = {
            file: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
        }
        self.places: dict[Path, list[Place]] = {
            file: integer_places(file.name, data) for file, data in self.files.items()
        }

    def run(self, seed: int, index: int) -> Outcome:
        """The case of this number, the same each time; the files are whole again after it."""
        generator = random.Random(f"{seed} {self.seed_name} {index}")
        with self.damaged(generator):
            return self.attempt()

    @contextmanager
    def damaged(self, generator: random.Random) -> Iterator[None]:
        # The weights' files, where all places and sizes stand, more often than the others.
        large = [file for file, data in self.files.items() if self.places[file]]
        file = generator.choice([*self.files, *large * 3])
        file.write_bytes(mutate(self.files[file], self.places[file], generator))
        yield
        file.write_bytes(self.files[file])

    def attempt(self) -> Outcome:
        """Opens the model, reads all its tensors and its vocabulary, makes its tokenizer."""
        size = sum(file.stat().st_size for file in self.files)
        allowed = 2 * size + ALLOWANCE
        refusal = offence = ""
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        started = tracemalloc.is_tracing()
        if not started:
            tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        try:
            self._read_all()
        except FormatError as error:
            refusal = str(error)
            offence = _badly_said(error, self.folder)
        except Exception as error:
            offence = f"{type(error).__name__}: {error}"
        peak = tracemalloc.get_traced_memory()[1] - before
        if not started:
            tracemalloc.stop()
        faulthandler.cancel_dump_traceback_later()
        if peak > allowed and not offence:
            offence = f"{peak} bytes were allocated; {allowed} are allowed"
        return Outcome(peak, allowed, refusal, offence)

    def _read_all(self) -> None:
        checkpoint = open_checkpoint(self.path)
        for tensor in checkpoint.tensors.values():
            raw = tensor.read()
            assert raw.nbytes == tensor.num_bytes
        if checkpoint.vocabulary is not None:
            tokenizer = checkpoint.tokenizer()
            tokenizer.decode(tokenizer.encode("the llama é 羊驼\n"))


def _badly_said(error: FormatError, folder: Path) -> str:
    try:
        assert_well_said(error, folder)
    except AssertionError as found:
        return f"badly said: {error!r}: {str(found)[:300]}"
    return ""
