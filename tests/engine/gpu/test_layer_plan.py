"""What lies on which device, by numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from puna.engine.gpu.layer_plan import Sizes, cpu_bytes, plan_layers, plan_tokens

SIZES = Sizes(layers=(100, 100, 100, 120), others=50, kv_token=2, work=30)
PATH = Path("model.gguf")


@pytest.mark.parametrize(
    ("free", "on_cpu"),
    # 80 for what is no layer; the last takes 120 + 20 for keys and values, the others 100 + 20.
    [(1000, 0), (580, 0), (579, 1), (460, 1), (459, 2), (340, 2), (339, 3), (220, 3)],
)
def test_the_last_layers_stay_on_the_gpu(free: int, on_cpu: int) -> None:
    assert plan_layers(SIZES, 10, free, PATH) == on_cpu
    assert cpu_bytes(SIZES, on_cpu, 10) == 120 * on_cpu


def test_a_gpu_without_room_for_one_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model.gguf: the GPU has 0.0 GB free.*kv_tokens"):
        plan_layers(SIZES, 10, 219, PATH)


def test_tokens_that_the_memory_left_allows() -> None:
    # 500 for weights and work, 8 a token.
    assert plan_tokens(SIZES, least=4, most=100, free=580) == 10
    assert plan_tokens(SIZES, least=4, most=100, free=100) == 4
    assert plan_tokens(SIZES, least=4, most=100, free=10**6) == 100
