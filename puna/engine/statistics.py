"""What an engine is doing, in numbers."""

from __future__ import annotations

from typing import NamedTuple


class Statistics(NamedTuple):
    """How an engine stands (`num_...`), and what it has done since it started."""

    num_running: int  # sequences
    num_waiting: int
    num_pages: int
    num_pages_used: int  # by sequences; those kept for later prompts are free
    prompt_tokens: int  # of prompts that were run
    cached_tokens: int  # of these, the ones whose keys and values were there already
    preemptions: int
    proposed_tokens: int  # guessed ahead
    accepted_tokens: int  # of these, the ones that held
