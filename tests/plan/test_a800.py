"""What the A800's slower links change."""

from __future__ import annotations

import json

from click.testing import CliRunner

from puna.commands.plan import plan
from puna.plan.hardware import device


def test_the_same_chip_multiplies_as_fast() -> None:
    for sold_in_china, chip in (("a800-80g", "a100-80g"), ("h800", "h100-80g")):
        assert device(sold_in_china).matmul == device(chip).matmul


def test_a_plan_on_a100s_says_what_a800s_change() -> None:
    asked = ["train", "--model", "13b", "--gpus", "64", "--parallel", "fsdp=8 tp=8"]
    said = CliRunner().invoke(plan, asked).output
    assert "400 GB/s of NVLink" in said and "million yuan" in said
    found = json.loads(CliRunner().invoke(plan, [*asked, "--json"]).output)
    assert found["kind"] == "train"
    assert 1.02 < found["a800"]["gpu_hours"] / found["gpu_hours"] < 1.5
    other = json.loads(CliRunner().invoke(plan, [*asked, "--gpu", "h100-80g", "--json"]).output)
    assert "a800" not in other
