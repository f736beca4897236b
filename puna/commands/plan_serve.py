"""`puna plan serve`: how fast devices answer with a model, and how many people."""

from __future__ import annotations

import click

from puna.commands.options import json_option
from puna.commands.plan_shared import (
    config_of,
    device_of,
    device_options,
    engine_of,
    model_option,
    price_options,
    seconds,
    show_json,
    weights_of,
)
from puna.commands.render import facts_table, human_bytes, human_count
from puna.plan.cost import rates
from puna.plan.hardware import DoesNotFitError
from puna.plan.serve_plan import ServePlan, plan_serve
from puna.plan.weights import KV_TYPES


@click.command()
@model_option
@device_options
@click.option(
    "--format", "formats", multiple=True, metavar="NAME", default=("bf16",), show_default=True,
    help="How weights are stored: bf16, int8, int4, fp8, q4_0, q4_k_m, ...; repeatable.",
)  # fmt: skip
@click.option(
    "--context", "contexts", type=int, multiple=True, metavar="N",
    help="Tokens of a user's dialog; repeatable.  [default: the model's]",
)  # fmt: skip
@click.option("--prompt", type=int, help="Tokens before an answer.  [default: context / 8]")
@click.option(
    "--kv-dtype", type=click.Choice(list(KV_TYPES)), default="f16", show_default=True,
    help="Type of the keys and values that are kept.",
)  # fmt: skip
@click.option("--users", type=int, help="Ask what so many at once would get.")
@click.option(
    "--speed", "demanded", type=float, default=10.0, show_default=True,
    help="Tokens a second that each user is to get.",
)  # fmt: skip
@click.option(
    "--tensor-parallel", "ways", type=int, metavar="N",
    help="GPUs that share each matrix.  [default: what serves most users]",
)  # fmt: skip
@price_options
@json_option
def serve(
    model: str,
    gpu: str,
    gpus: int,
    formats: tuple[str, ...],
    contexts: tuple[int, ...],
    prompt: int | None,
    kv_dtype: str,
    users: int | None,
    demanded: float,
    ways: int | None,
    price: float | None,
    carbon: float | None,
    pue: float | None,
    as_json: bool,
) -> None:
    """Predict memory, tokens a second, latency and users of a served model.

    Several --format or --context give a table, a row each.
    """
    config, device = config_of(model), device_of(gpu)
    cost_rates = rates(gpu, price, carbon, pue)

    def plan(form: str, context: int | None) -> ServePlan:
        stored = weights_of(config, form)
        return plan_serve(
            config, stored, device, gpus, context=context, prompt=prompt, kv_type=kv_dtype,
            ways=ways, demanded=demanded, users=users, rates=cost_rates,
            engine=engine_of(gpu, config, stored), weights_for=weights_of,
        )  # fmt: skip

    asked = [(form, context) for form in formats for context in (contexts or (None,))]
    if len(asked) == 1:
        found = plan(*asked[0])
        show_json(found.to_dict()) if as_json else _show(model, found)
        return
    rows: list[tuple[str, int | None, ServePlan | str]] = []
    for form, context in asked:
        try:
            rows.append((form, context, plan(form, context)))
        except DoesNotFitError as error:
            rows.append((form, context, str(error)))
    if as_json:
        plans = [
            row.to_dict() if isinstance(row, ServePlan)
            else {"kind": "serve", "format": form, "context": context, "refused": row}
            for form, context, row in rows
        ]  # fmt: skip
        show_json({"kind": "serve_table", "plans": plans})
        return
    _table(rows)


def _show(model: str, plan: ServePlan) -> None:
    share = f", {plan.replicas} times {plan.ways} sharing it" if plan.devices > 1 else ""
    facts = {
        "model": f"{model}, {human_count(plan.model.num_parameters)} parameters in {plan.format}, "
        f"{plan.bits:.2f} bits a weight",
        "devices": f"{plan.devices} x {plan.device}{share}",
        "memory of each": f"{human_bytes(plan.weight_bytes)} weights, "
        f"{human_bytes(plan.free_bytes)} left for keys and values, of "
        f"{human_bytes(plan.memory_bytes)}",
        "one user": f"{human_bytes(plan.user_bytes)} of keys and values for {plan.context} tokens "
        f"({plan.kv_type})",
        "users that fit": f"{plan.most_users:,} with full contexts",
        "first token": f"{seconds(plan.first_token_seconds)} after a prompt of {plan.prompt}",
        "alone": f"{plan.alone.each:,.1f} tokens/s, {seconds(plan.alone.token_seconds)} a token",
        "best batch": f"{plan.best.users} at once on {plan.ways}: "
        f"{plan.best.tokens_per_second:,.0f} tokens/s, {plan.best.each:,.1f} each "
        f"({seconds(plan.best.token_seconds)} a token)",
        f"at {plan.demanded:g} tokens/s each": f"{plan.users_at_speed:,} users, "
        f"{plan.users_at_speed / plan.devices:,.1f} a GPU",
    }
    if plan.users is not None:
        facts[f"{plan.users:,} users"] = _wanted(plan)
    if plan.dollars is not None:
        facts["price"] = f"{plan.dollars:,.2f} dollars a million tokens at the best batch"
    facts_table(f"Serving {model}", facts)


def _wanted(plan: ServePlan) -> str:
    got = "do not fit"
    if plan.wanted is not None:
        got = f"get {plan.wanted.each:,.1f} tokens/s each"
    if plan.devices_wanted is None:
        return f"{got}; no number of these gives each {plan.demanded:g} tokens/s"
    return f"{got}; {plan.devices_wanted:,} GPUs give each {plan.demanded:g} tokens/s"


def _table(rows: list[tuple[str, int | None, ServePlan | str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = ("format", "context", "weights", "first token", "tokens/s", "best batch", "users")
    for name in (*names, "at speed"):
        table.add_column(name, justify="left" if name == "format" else "right", no_wrap=True)
    notes = []
    for form, context, row in rows:
        if isinstance(row, str):
            table.add_row(form, str(context or ""), *("-",) * 6)
            notes.append(f"{form}: {row}")
            continue
        table.add_row(
            form,
            str(row.context),
            human_bytes(row.weight_bytes * row.ways),
            seconds(row.first_token_seconds),
            f"{row.alone.each:,.1f}",
            f"{row.best.users} x {row.best.each:,.1f}",
            f"{row.most_users:,}",
            f"{row.users_at_speed:,}",
        )
    console = Console(highlight=False)
    console.print(table)
    for note in dict.fromkeys(notes):
        console.print(note, soft_wrap=True)
