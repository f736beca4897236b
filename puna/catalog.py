"""What is known, offline, of the models that Meta released, and the names they go by.

Sources: "Llama 2" (arXiv 2307.09288) and its model card; "LLaMA" (arXiv 2302.13971). A new model is
one row in `MODELS`; a renamed owner one row in `RENAMED_OWNERS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from puna.config import PRESETS, ModelConfig


@dataclass(frozen=True, slots=True)
class KnownModel:
    """One released (or announced) model.

    `tokens` pretraining tokens; `gpu_hours` A100-80GB hours of pretraining, `power_watts` per GPU
    and `tco2eq` tonnes as published, None where they are not; `repository` on the hub, empty for
    one that was never released; `other_formats` the community's files of July 2023.
    """

    name: str
    preset: str
    family: str
    chat: bool
    repository: str
    other_formats: tuple[str, ...]
    released: str
    license: str
    tokens: float
    pretraining_cutoff: str = ""
    tuning_cutoff: str = ""
    gpu_hours: int | None = None
    power_watts: int | None = None
    tco2eq: float | None = None

    @property
    def config(self) -> ModelConfig:
        return PRESETS[self.preset]


# size: (A100 GPU-hours, watts per GPU, tCO2eq) of the base model
_LLAMA2_COST = {
    "7b": (184_320, 400, 31.22),
    "13b": (368_640, 400, 62.44),
    "34b": (1_038_336, 350, 153.90),
    "70b": (1_720_320, 400, 291.42),
}
_LLAMA2_LICENSE = (
    "Llama 2 Community License: commercial use allowed; above 700 million monthly active users a "
    "separate licence is needed"
)
_LLAMA1_LICENSE = "LLaMA licence: non-commercial research, on request to Meta"
# name: tokens
_LLAMA1_TOKENS = {
    "llama1-7b": 1.0e12,
    "llama1-13b": 1.0e12,
    "llama1-33b": 1.4e12,
    "llama1-65b": 1.4e12,
}


def _llama2(size: str, chat: bool) -> KnownModel:
    gpu_hours, watts, carbon = _LLAMA2_COST[size]
    released = size != "34b"
    suffix = "-chat" if chat else ""
    title = f"Llama-2-{size}{suffix}"
    quantized = f"TheBloke/Llama-2-{size.upper()}{'-Chat' if chat else ''}"
    return KnownModel(
        name=title.lower(),
        preset=size,
        family="Llama 2",
        chat=chat,
        repository=f"meta-llama/{title}-hf" if released else "",
        other_formats=(
            (f"meta-llama/{title}", f"{quantized}-GGML", f"{quantized}-GGUF", f"{quantized}-GPTQ")
            if released
            else ()
        ),
        released="2023-07-18" if released else "",
        license=_LLAMA2_LICENSE,
        tokens=2.0e12,
        pretraining_cutoff="September 2022",
        tuning_cutoff="July 2023" if chat else "",
        gpu_hours=gpu_hours,
        power_watts=watts,
        tco2eq=carbon,
    )


def _llama1(name: str, tokens: float) -> KnownModel:
    return KnownModel(
        name=name,
        preset=name,
        family="LLaMA 1",
        chat=False,
        repository="",
        other_formats=(),
        released="2023-02-24",
        license=_LLAMA1_LICENSE,
        tokens=tokens,
    )


MODELS: tuple[KnownModel, ...] = (
    *(_llama2(size, chat) for size in _LLAMA2_COST for chat in (False, True)),
    *(_llama1(name, tokens) for name, tokens in _LLAMA1_TOKENS.items()),
)

# The repositories moved from the owner `llamaste` to `meta-llama` soon after the release.
RENAMED_OWNERS = {"llamaste": "meta-llama"}


def find(name: str) -> KnownModel | None:
    """The model called `name`: its own name, or a repository's, old owners included."""
    wanted = present_repository(name).lower()
    for model in MODELS:
        repositories = (model.repository, *model.other_formats)
        if wanted == model.name or wanted in (r.lower() for r in repositories if r):
            return model
    return None


def present_repository(name: str) -> str:
    """`owner/repository` with an owner that has moved replaced by the present one."""
    owner, slash, repository = name.partition("/")
    if not slash:
        # llama2-7b, Llama_2_7B: the ways people write it
        return re.sub(r"^llama[-_ ]?2[-_ ]", "llama-2-", name, flags=re.IGNORECASE)
    return f"{RENAMED_OWNERS.get(owner.lower(), owner)}/{repository}"
