"""`puna quantize`: block types and mixes, or GPTQ, both with calibration text."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from puna.commands.convert import write
from puna.commands.measure import measure, show
from puna.commands.models import resolve
from puna.commands.options import Scope, json_option
from puna.commands.progress import bar
from puna.data.text import documents
from puna.formats import open_checkpoint
from puna.formats.checkpoint import Checkpoint, LazyTensor, Packed
from puna.formats.imatrix import read_importance, write_importance
from puna.quantize.grouped import Grouped
from puna.quantize.mixes import MIXES, mix_name
from puna.quantize.storage import Floats

if TYPE_CHECKING:
    from torch import Tensor

_GPTQ = re.compile(r"gptq-([2348])bit-(-1|\d+)g(-actorder)?")


@click.command()
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    required=True,
    metavar="NAME",
    help=f"{', '.join(MIXES)} (a GGUF file), or gptq-4bit-128g, gptq-3bit-64g-actorder, ... "
    "(a folder; bits 2, 3, 4 or 8, group size -1 for whole rows).",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Text that the model shall stay good at; GPTQ needs it. Not the text of --compare.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Sequences of it."
)
@click.option(
    "--context",
    type=click.IntRange(min=2),
    default=512,
    show_default=True,
    help="Tokens of each, and of the windows of --compare.",
)
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Importance matrix, in place of --calibration.",
)
@click.option(
    "--save-imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what --calibration found, as llama.cpp reads it.",
)
@click.option("--pure", is_flag=True, help="Every matrix in the mix's own type.")
@click.option("--damping", type=float, default=0.01, show_default=True, help="GPTQ's.")
@click.option("--symmetric/--asymmetric", default=True, show_default=True, help="GPTQ's grid.")
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where GPTQ keeps finished layers, to resume from; DESTINATION.work if not given.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Then measure both models on this text: perplexity, divergence, agreement.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps.")
@click.option("--overwrite", is_flag=True, help="Replace DESTINATION if it exists.")
@json_option
def quantize(
    source: str,
    destination: Path,
    target: str,
    calibration: Path | None,
    samples: int,
    context: int,
    imatrix: Path | None,
    save_imatrix: Path | None,
    pure: bool,
    damping: float,
    symmetric: bool,
    work: Path | None,
    compare: Path | None,
    device: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Quantize SOURCE, a model in any format, to DESTINATION.

    Without --calibration the block types need no torch. GPTQ holds one layer and its activations
    at a time; interrupted, the same command goes on at the layer it was in.
    """
    checkpoint = resolve(source)
    if destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists already; remove it or give --overwrite")
    gptq = _GPTQ.fullmatch(target)
    if gptq is None and mix_name(target) not in MIXES:
        raise ValueError(f"{target} is no quantization; puna convert --dtype {target} writes it")
    if gptq is not None:
        if calibration is None:
            raise ValueError(f"{target} needs text to calibrate on: --calibration FILE")
        if imatrix or save_imatrix or pure:
            raise ValueError("--imatrix, --save-imatrix and --pure are for the block types")
        tokens = _sequences(checkpoint, calibration, samples, context)
        folder = work or destination.with_name(f"{destination.name}.work")
        settings = {
            "bits": int(gptq[1]),
            "group_size": int(gptq[2]),
            "act_order": bool(gptq[3]),
            "symmetric": symmetric,
            "damping": damping,
        }
        rounded = _gptq(checkpoint, tokens, settings, target, folder, device)
        write(rounded, destination, "gptq", label="Writing", overwrite=overwrite)
        if work is None:
            shutil.rmtree(folder)
    else:
        importance = _importance(
            checkpoint, calibration, imatrix, save_imatrix, samples, context, device
        )
        write(
            checkpoint, destination, "gguf", label="Quantizing",
            dtype=target, pure=pure, importance=importance, overwrite=overwrite,
        )  # fmt: skip
    if compare is not None:
        scope = Scope(compare, min(context, checkpoint.config.context_length))
        models = [(str(destination), open_checkpoint(destination))]
        show(measure(models, (source, checkpoint), scope, device, "fp32"), as_json=as_json)


def _sequences(checkpoint: Checkpoint, text: Path, samples: int, context: int) -> Tensor:
    from puna.quantize.calibration import calibration_sequences

    if context > checkpoint.config.context_length:
        raise ValueError(
            f"--context {context} is more than the model's {checkpoint.config.context_length}"
        )
    tokenizer = checkpoint.tokenizer()
    ids = tokenizer.encode("\n\n".join(documents(text)))
    return calibration_sequences(ids, count=samples, length=context, bos_id=tokenizer.bos_id)


def _importance(
    checkpoint: Checkpoint,
    calibration: Path | None,
    imatrix: Path | None,
    save_imatrix: Path | None,
    samples: int,
    context: int,
    device: str,
) -> Mapping[str, Floats] | None:
    """Columns' weights from a file or from text, None where neither is given."""
    if imatrix is not None and calibration is not None:
        raise ValueError("--imatrix and --calibration both say what counts; give one")
    if imatrix is not None:
        return read_importance(imatrix)
    if calibration is None:
        if save_imatrix is not None:
            raise ValueError("--save-imatrix writes what --calibration FILE finds; give that too")
        return None
    tokens = _sequences(checkpoint, calibration, samples, context)

    from puna.formats.network import read_tensor
    from puna.quantize.calibration import importance

    with bar("Calibrating", total=checkpoint.config.num_layers) as advance:
        found = importance(
            checkpoint.config,
            lambda name: read_tensor(checkpoint.tensors[name]),
            tokens,
            device=device,
            on_layer=lambda layer: advance(),
        )
    if save_imatrix is not None:
        write_importance(save_imatrix, found, tokens.numel())
    return found


def _gptq(
    checkpoint: Checkpoint,
    tokens: Tensor,
    settings: Mapping[str, Any],
    label: str,
    work: Path,
    device: str,
) -> Checkpoint:
    """The checkpoint with its layers' matrices rounded; their integers lie in `work`."""
    from puna.formats.network import read_tensor
    from puna.quantize.gptq import GPTQSettings
    from puna.quantize.gptq_model import quantize_model

    tensors = dict(checkpoint.tensors)
    linears = [name for name, tensor in tensors.items() if _is_linear(name, tensor.shape)]
    notes: list[str] = []
    with bar("Quantizing", total=len(linears)) as advance:
        rounded = quantize_model(
            checkpoint.config,
            lambda name: read_tensor(checkpoint.tensors[name]),
            tokens,
            GPTQSettings(**settings),
            work,
            device=device,
            on_linear=lambda name: advance(),
            on_note=notes.append,
        )
        for name, grouped in rounded:
            tensors[name] = _kept(tensors[name], name, grouped, label, work)
    return replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, *notes))


def _kept(tensor: LazyTensor, name: str, grouped: Grouped, label: str, work: Path) -> LazyTensor:
    """The tensor as its integers in the work folder, read again when it is written."""
    from puna.quantize.work import load_grouped

    def read() -> Grouped:
        return load_grouped(work, name)

    size = grouped.codes.size * grouped.bits // 8 + grouped.scales.nbytes
    return replace(
        tensor,
        dtype="f32",
        read=lambda: read().dequantize().view(np.uint8),
        packed=Packed(label, grouped.bits, size, read),
        origin=None,
    )


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return name.startswith("layers.") and len(shape) == 2
