"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

# Tests run in two processes, and the programs that they start beside those: threads would only wait
# for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# Before anything imports the library: no test asks a hub but its own, or finds a user's models.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir()) / "puna-tests-have-no-models")

import pytest
import torch

# In a script's background Ctrl-C is ignored, which the programs that tests interrupt would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before anything imports Triton: without a GPU its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from puna.tokenizer import Tokenizer, Vocabulary
from puna.tokenizer.train import train
from tests.samples import story_lines

SHARED = Path(__file__).parents[1].parent / "shared" / "data"

# The tests' matrices are too small for threads to help.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of public data beside the checkout; tests that want it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    """A vocabulary of 420 pieces, trained here as Llama's was."""
    return train(story_lines(400), vocab_size=420, num_threads=1)


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    return Tokenizer(vocabulary)
