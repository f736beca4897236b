"""`Affinity` where Ray Serve asks for it: in the process that sends the requests."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from puna.serve.replicas.affinity import Affinity, prefix_keys
from puna.serve.replicas.worker import Job


class PrefixRouter(RequestRouter):
    """Sends a `Job`, the first argument of each request, to the replica that has its first pages.

    Its hooks are called by Ray Serve, in one thread.
    """

    def initialize_state(self, **options: Any) -> None:
        """Ray Serve's constructor for what is ours."""
        self._affinity = Affinity()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The chosen one, then all others."""
        if pending_request is None:
            return [candidate_replicas]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        request = pending_request.metadata.internal_request_id
        chosen = replicas.pop(self._affinity.choose(request, _keys(pending_request), replicas))

        def end(future: Any) -> None:
            if future.cancelled():
                self._affinity.end(request)

        pending_request.future.add_done_callback(end)
        return [[chosen], list(replicas.values())]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """A request was sent, in the end perhaps not to the one that was chosen."""
        request = pending_request.metadata.internal_request_id
        self._affinity.give(request, _keys(pending_request), replica_id.unique_id)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A request has ended, in whatever way."""
        self._affinity.end(internal_request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """A replica is known to be dead."""
        super().on_replica_actor_died(replica_id)
        self._affinity.forget(replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """These replicas there are."""
        gone = set(self.curr_replicas) - {replica.replica_id for replica in replicas}
        super().update_replicas(replicas)
        for replica_id in gone:
            self._affinity.forget(replica_id.unique_id)


def _keys(pending: PendingRequest) -> list[bytes]:
    if not pending.args:  # a question about the replica itself
        return []
    job: Job = pending.args[0]
    return prefix_keys(job.prompt.ids, job.adapter)
