"""Ray, as the replicas need it: started for them on this machine, or joined."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.engine.async_llm import AsyncLLM
from puna.engine.loading import DTYPES, SMALL_MODEL
from puna.engine.memory import chosen_kv_dtype, free_memory, kv_bytes
from puna.formats.checkpoint import Checkpoint
from puna.kernels.step import physical_cores
from puna.serve.replicas.worker import Worker

if TYPE_CHECKING:
    from puna.serve.replicas.remote import RemoteLLM

# Ray reads these when it is imported, and hands them to its processes.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # no Ray by itself, after ours was stopped
}
_OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: be found at 127.0.0.1 alone
    "RAY_AUTH_MODE": "token",  # and refuse who has none
    "RAY_worker_niceness": "0",  # a replica is no background work
}
_STORE_BYTES = 80 << 20  # Ray's least; what passes through is small
_MAX_REQUESTS = 1 << 16  # at one replica: how many there may be is the API's business
_REPORT_SECONDS = 60.0
_CONTEXTS, _SHARE = 8, 4  # as `plan_kv_tokens` chooses: at most so many, a quarter of the memory
_REASON = re.compile(r"^ValueError: (.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Plan:
    """A model: `make(**options)` loads it in each replica; `checkpoint` is the same, opened here.

    All but the checkpoint is pickled. The options `num_threads` and `kv_tokens`, where they are not
    given, become each replica's share.
    """

    checkpoint: Checkpoint
    make: Callable[..., AsyncLLM]
    options: Mapping[str, Any]


@contextmanager
def replicas(
    plans: Mapping[str, Plan], count: int, address: str | None = None
) -> Iterator[dict[str, RemoteLLM]]:
    """`count` replicas of each model, by the plans' names, until the end of the block.

    Without an `address` Ray is started for them on this machine, out of others' reach, and stopped
    in the end. Else that cluster is joined, whose machines need Puna and the models' files. Raises
    ValueError where that cannot be, and what loading the models raises.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("replicas run on Ray Serve: pip install 'puna[ray]'")
    os.environ.update(_QUIET)
    with _own_ray() if address is None else _joined_ray(address) as cpus:
        from ray import serve

        name = f"puna-{secrets.token_hex(4)}"
        is_own = address is None
        share = cpus // (count if is_own else count * len(plans))
        try:
            yield _deployed(name, plans, count, max(1, share), reserve=not is_own)
        finally:
            if not is_own:
                for index in range(len(plans)):
                    serve.delete(f"{name}-{index}")


@contextmanager
def _own_ray() -> Iterator[int]:
    """Ray on this machine; the number of processors."""
    if "ray" not in sys.modules:
        os.environ.update(_OWN, RAY_AUTH_TOKEN=secrets.token_hex(32))
    elif not os.environ.items() >= _OWN.items():
        raise ValueError("Ray was imported before: it would let in whoever finds it")
    import ray

    cpus = physical_cores()
    # Short: Unix sockets lie in it.
    folder = tempfile.mkdtemp(prefix="puna-", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        ray.init(
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
        )
        _hush()
        yield cpus
    finally:
        ray.shutdown()
        for _ in range(20):  # what is still ending may write into it once more
            shutil.rmtree(folder, ignore_errors=True)
            if not Path(folder).exists():
                break
            time.sleep(0.1)


@contextmanager
def _joined_ray(address: str) -> Iterator[int]:
    """A cluster that there is; the number of its processors."""
    import ray

    if address.startswith("ray://"):
        raise ValueError(f"--ray-address {address}: give the cluster's own HOST:PORT, or auto")
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no answer"])[0]
        raise ValueError(f"--ray-address {address} cannot be joined: {reason}") from None
    _hush()
    try:
        yield int(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _hush() -> None:
    """Leaves it to us to say what happens."""
    import ray.serve  # noqa: F401 - sets the levels when it is imported

    for name in ("ray", "ray.serve"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _deployed(
    name: str, plans: Mapping[str, Plan], count: int, cpus: int, *, reserve: bool
) -> dict[str, RemoteLLM]:
    """Starts the replicas, `cpus` threads in each, and waits for them."""
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.schema import LoggingConfig

    serve.start(proxy_location="Disabled")
    targets = []
    for index, plan in enumerate(plans.values()):
        options = dict(plan.options)
        if options.get("num_threads") is None:
            is_small = plan.checkpoint.config.num_parameters < SMALL_MODEL
            options["num_threads"] = 1 if is_small else cpus
        if not reserve and count > 1 and options.get("kv_tokens") is None:
            options["kv_tokens"] = _kv_tokens(plan, count)
        deployment = serve.deployment(
            name="replica",
            num_replicas=count,
            max_ongoing_requests=_MAX_REQUESTS,
            request_router_config=RequestRouterConfig(
                request_router_class="puna.serve.replicas.router.PrefixRouter"
            ),
            ray_actor_options={
                "num_cpus": options["num_threads"] if reserve else 0,
                "num_gpus": int(str(options.get("device", "cpu")).startswith("cuda")),
            },
            max_constructor_retry_count=1,
            health_check_period_s=1.0,
            graceful_shutdown_timeout_s=1.0,
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )(Worker)
        application = deployment.bind(partial(plan.make, **options), str(Path.cwd()))
        targets.append(serve.RunTarget(application, f"{name}-{index}", route_prefix=None))
    try:
        handles = serve.run_many(targets)
    except RuntimeError:
        raise ValueError(_reason(serve.status().applications)) from None
    return {
        key: _remote(plan, handle)
        for (key, plan), handle in zip(plans.items(), handles, strict=True)
    }


def _kv_tokens(plan: Plan, count: int) -> int | None:
    """A replica's share of what one engine would hold; None on a GPU, where each has its own."""
    free, config = free_memory(), plan.checkpoint.config
    if free is None or plan.options.get("device", "cpu") != "cpu":
        return None
    stored = DTYPES.get(plan.options.get("dtype", "auto"))
    kept = chosen_kv_dtype(plan.options.get("kv_dtype", "auto"), plan.checkpoint, stored)
    left = free - count * plan.checkpoint.num_bytes
    affordable = left // (_SHARE * count) // kv_bytes(config, 1, kept)
    return max(config.context_length, min(_CONTEXTS * config.context_length, affordable))


def _remote(plan: Plan, handle: Any) -> RemoteLLM:
    from puna.serve.replicas.remote import RemoteLLM

    room = handle.report.remote().result(timeout_s=_REPORT_SECONDS).room
    return RemoteLLM(plan.checkpoint.config, plan.checkpoint.tokenizer(), handle, room)


def _reason(applications: Mapping[str, Any]) -> str:
    """Why the replicas did not start, from what Ray Serve has kept of it."""
    for application in applications.values():
        for deployment in application.deployments.values():
            if found := _REASON.findall(deployment.message):
                return str(found[-1])
    return "the replicas could not be started; Ray Serve's log says why"
