"""Checkpoints of several ranks, by torch.distributed.checkpoint: each writes its own pieces.

A save copies the state to memory of its own and goes on behind training. The plan, that every piece
is written once and that all ranks hear of a failure are torch's; the files, safetensors with their
checksums, and the commit are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from puna.config import ModelConfig
from puna.formats.huggingface import CHAT_TEMPLATE
from puna.formats.manifest import FileFacts, Manifest
from puna.formats.pieces import OFFSETS, OFFSETS_KEY
from puna.formats.run_folder import checkpoint_path
from puna.formats.safetensors_file import write_arrays
from puna.formats.sharded import weights_name
from puna.parallel.fsdp import local
from puna.tokenizer import Vocabulary
from puna.tokenizer.sentencepiece_model import write_model
from puna.train.checkpoints import RunState
from puna.train.commit import begin, commit, discard, partial, unsaved

_TYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a checkpoint has besides tensors. `keep`: how many of the newest stay."""

    run: Path
    config: ModelConfig
    state: RunState
    vocabulary: Vocabulary
    keep: int
    chat_template: str | None = None

    @property
    def path(self) -> Path:
        return checkpoint_path(self.run, self.state.step)


class Saves:
    """One save at a time, of all ranks together. Every rank makes the same calls in one order.

    `begin` returns as soon as the state is copied; the failure of a save is raised, on all ranks,
    by the next `begin` or `wait`.
    """

    def __init__(self) -> None:
        # Of its own: training talks meanwhile.
        self._group = dist.new_group(backend="gloo")
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._path = Path()

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the save under way went wrong."""
        return self._failure is not None

    def begin(self, facts: Facts, tensors: Mapping[str, Tensor]) -> None:
        """Copies this rank's parts of `tensors` (weights, and moments as named by `moments_of`) and
        begins to write them."""
        self.wait()
        self._copy(tensors)
        self._path = facts.path
        self._thread = threading.Thread(
            target=self._write, args=(facts, dict(tensors)), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is committed; CheckpointError where it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is None:
            return
        if isinstance(failure, CheckpointException):
            rank, (error, _) = min(failure.failures.items(), key=lambda item: item[0])
            if isinstance(error, OSError):
                raise unsaved(self._path, error, rank)
        raise failure

    def _copy(self, tensors: Mapping[str, Tensor]) -> None:
        """To memory that is kept from save to save, pinned where a GPU writes to it."""
        for name, tensor in tensors.items():
            part = local(tensor).detach()
            if name not in self._copies:
                self._copies[name] = torch.empty(
                    part.shape, dtype=part.dtype, pin_memory=part.is_cuda
                )
            self._copies[name].copy_(part, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def _write(self, facts: Facts, tensors: dict[str, Tensor]) -> None:
        writer, planner = _Writer(facts, dist.get_rank()), _Planner(self._copies)
        try:
            save(tensors, storage_writer=writer, planner=planner, process_group=self._group)
        except BaseException as error:
            if dist.get_rank() == 0:
                discard(facts.path)
            self._failure = error


class _Planner(DefaultSavePlanner):
    """Plans with the tensors, of which it only sees how they are cut; gives the copies' data."""

    def __init__(self, copies: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._copies = copies

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._copies[write_item.index.fqn]


class _Writer(StorageWriter):
    """A rank's pieces to two files, of weights and of moments; the first rank commits."""

    def __init__(self, facts: Facts, rank: int) -> None:
        self._facts, self._rank = facts, rank

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first rank, before any other writes."""
        begin(self._facts.path)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Gives one result a file, with its name and facts."""
        config = self._facts.config
        shapes = config.tensor_shapes() | config.head_shapes()
        weights: list[WriteItem] = []
        moments: list[WriteItem] = []
        for item in plan.items:
            assert item.tensor_data is not None
            if 0 not in item.tensor_data.chunk.sizes:  # some ranks have no row of a small tensor
                (weights if item.index.fqn in shapes else moments).append(item)
        results = []
        for name, items in (
            (weights_name(self._rank), weights),
            (f"optimizer-{self._rank:05}.safetensors", moments),
        ):
            if items:
                facts = _write_file(partial(self._facts.path) / name, items, planner)
                results.append(WriteResult(items[0].index, facts.bytes, (name, facts)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first rank, once all have written."""
        facts, folder = self._facts, partial(self._facts.path)
        files = dict(result.storage_data for rank in results for result in rank)
        texts = {"tokenizer.model": write_model(facts.vocabulary)}
        if facts.chat_template is not None:
            texts[CHAT_TEMPLATE] = facts.chat_template.encode()
        for name, text in texts.items():
            with open(folder / name, "xb") as file:
                out = _Hashed(file)
                out.write(text)
                files[name] = out.flushed()
        manifest = Manifest(facts.config, dataclasses.asdict(facts.state), files)
        commit(facts.path, manifest, keep=facts.keep)


class _Hashed:
    """A file whose checksum is known as it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: Any) -> None:
        self._file.write(data)
        self._digest.update(data)

    def flushed(self) -> FileFacts:
        """Once the disk has it all."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileFacts(self._file.tell(), self._digest.hexdigest())


def _write_file(path: Path, items: list[WriteItem], planner: SavePlanner) -> FileFacts:
    specs, offsets = {}, {}
    for item in items:
        assert item.tensor_data is not None
        name, chunk = item.index.fqn, item.tensor_data.chunk
        specs[name] = (_TYPES[item.tensor_data.properties.dtype], tuple(chunk.sizes))
        offsets[name] = {OFFSETS: list(chunk.offsets)}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", OFFSETS_KEY: json.dumps(offsets)}
    tensors = (cast(Tensor, planner.resolve_data(item)) for item in items)
    with open(path, "xb") as file:
        out = _Hashed(file)
        raw = (tensor.reshape(-1).view(torch.uint8).numpy() for tensor in tensors)
        write_arrays(out, specs, raw, metadata)
        return out.flushed()
