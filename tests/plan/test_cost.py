"""Energy, carbon and money, against the paper's table and the user's figures."""

from __future__ import annotations

import pytest

from puna.catalog import MODELS, KnownModel
from puna.plan.cost import Rates, cost, rates

BASES = [model for model in MODELS if model.gpu_hours and not model.chat]


@pytest.mark.parametrize("model", BASES, ids=lambda model: model.name)
def test_the_papers_carbon_follows_from_its_gpu_hours(model: KnownModel) -> None:
    found = cost(model.gpu_hours, model.power_watts, rates("a100-80g"))
    assert found.tco2eq == pytest.approx(model.tco2eq, rel=0.02)


def test_the_document_s_price_gives_its_sums() -> None:
    hours = sum(model.gpu_hours for model in BASES)
    assert hours == 3_311_616
    found = cost(hours, 400, rates("a100-80g"))
    assert found.dollars == pytest.approx(20e6)
    assert found.yuan == pytest.approx(200e6)
    assert round(found.rates.price, 2) == 6.04
    assert round(found.rates.yuan, 1) == 60.4


def test_energy_by_hand() -> None:
    found = cost(1000, 500, Rates(price=2.0, pue=1.2, carbon=0.5))
    assert found.kwh == pytest.approx(600)
    assert found.tco2eq == pytest.approx(0.3)
    assert found.dollars == 2000
    assert found.yuan is None


def test_a_device_without_a_price_costs_nothing_known() -> None:
    assert cost(10, 100, rates("abacus")).dollars is None
    assert cost(10, 100, rates("abacus", price=3)).dollars == 30


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="price is -1"):
        rates("a100-80g", price=-1)
    with pytest.raises(ValueError, match="a PUE of"):
        Rates(pue=0.5)
    with pytest.raises(ValueError, match="carbon is nan"):
        rates("a100-80g", carbon=float("nan"))
