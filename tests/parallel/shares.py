"""What each process of the tensor-parallel test does: python -m torch.distributed.run ... FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from puna.engine.gpu import loading as gpu_loading
from puna.engine.gpu.parallel import LeadingRunner, follow
from puna.formats import open_checkpoint
from puna.parallel.ranks import join
from tests.engine.gpu.test_runner import PAGES, STEPS


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    gpu_loading.compute_type = lambda *arguments: torch.float32  # no rounding but of the weights
    ranks = join("cpu")
    for path in sorted(folder.glob("*.gguf")):
        dtypes = ["auto", "int8"] if path.stem == "f32" else ["auto"]
        if path.stem == "f32" and ranks.size == 2:
            dtypes.append("int4")
        for dtype in dtypes:
            runner = gpu_loading.load_gpu_runner(
                open_checkpoint(path), "cpu", dtype, kv_tokens=PAGES * 16, ranks=ranks
            )
            if ranks.rank > 0:
                follow(runner, ranks)
                continue
            leader = LeadingRunner(runner, ranks)
            logits = [leader.step(step).logits for step in STEPS]
            leader.close()
            np.savez(folder / f"{path.stem}-{dtype}.npz", *logits)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
