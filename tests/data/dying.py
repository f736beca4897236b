"""A step whose process is killed; a module of its own, as other processes import it."""

from __future__ import annotations

import os
import signal
from typing import Any

from datatrove.pipeline.base import PipelineStep


class Dying(PipelineStep):
    type, name = "test", "dying"

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        yield from ()
