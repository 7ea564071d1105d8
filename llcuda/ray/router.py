"""The request router of the replicas: a prompt goes to the replica that has its beginning.

It rests on Ray's request-router API, which is alpha. `llcuda.ray.deployment` does without it where
this file cannot be imported, and a choice that fails leaves the request to the least loaded
replica.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from typing import Any

from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from llcuda.ray.forwarded import RECENT, ForwardedRequest, replica_tag

logger = logging.getLogger("ray.serve")
MAX_KEYS = 2**16


class PrefixMap:
    """Which replicas have got which beginnings of prompts; the oldest are forgotten first.

    Args:
        max_imbalance: Requests that the replica with the beginning of a prompt may have more than
            the least loaded one.
        max_keys: Most beginnings that are kept.
    """

    def __init__(self, max_imbalance: int, max_keys: int = MAX_KEYS) -> None:
        self._max_imbalance = max_imbalance
        self._max_keys = max_keys
        self._replicas: OrderedDict[bytes, dict[str, None]] = OrderedDict()
        self._first: dict[str, set[bytes]] = {}  # the first blocks of each replica's prompts
        self._start: dict[str, int] = {}  # what is added to their number

    def choose(self, model: str, keys: Sequence[bytes], loads: Mapping[str, int]) -> str:
        """Return the replica for a prompt.

        Args:
            model: The name of the model; "" where there is only one.
            keys: Hashes of the beginnings of the prompt, the shortest first.
            loads: The requests that each replica has.
        """
        fewest = min(loads.values())
        near = {name for name, load in loads.items() if load <= fewest + self._max_imbalance}
        # The hash is the same in each process that routes, so that these agree.
        seed = keys[0] if keys else random.randbytes(8)
        order = {name: hashlib.blake2b(seed + name.encode()).digest() for name in loads}
        if having := self._having(keys, near):
            return min(_least_loaded(having, loads), key=order.__getitem__)
        pool = self._having([_model_key(model)], near) if model else set()
        pool = pool or _least_loaded({*loads}, loads)
        sizes = self._sizes({*loads}, pool)
        bound = 1.1 * min(sizes.values()) + 1
        return min(pool, key=lambda name: (sizes[name] >= bound, order[name]))

    def add(self, model: str, keys: Sequence[bytes], replica: str) -> None:
        """Note that a replica has got a prompt.

        Args:
            model: The name of the model; "" where there is only one.
            keys: As for `choose`.
            replica: The id of the replica.
        """
        if keys:
            self._first.setdefault(replica, set()).add(keys[0])
        for key in [*([_model_key(model)] if model else []), *keys]:
            self._replicas.setdefault(key, {})[replica] = None
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._max_keys:
            key, replicas = self._replicas.popitem(last=False)
            for name in replicas:
                self._first.get(name, set()).discard(key)

    def keep(self, replicas: Set[str]) -> None:
        """Forget the replicas that are gone.

        Args:
            replicas: The ids of those that are there.
        """
        self._first = {name: first for name, first in self._first.items() if name in replicas}
        self._start = {name: size for name, size in self._start.items() if name in self._first}

    def _sizes(self, replicas: Set[str], pool: Set[str]) -> dict[str, int]:
        """Return how many first blocks each replica of a pool has, as it counts for new prompts.

        A replica that has just begun counts as if it had as many as the one with the fewest, so
        that it does not get every new prompt.
        """
        known = [self._start[name] + len(self._first[name]) for name in replicas & {*self._start}]
        for name in replicas - {*self._start}:
            self._start[name] = min(known, default=0)
            self._first.setdefault(name, set())
        return {name: self._start[name] + len(self._first[name]) for name in pool}

    def _having(self, keys: Sequence[bytes], replicas: set[str]) -> set[str]:
        """Return those of the replicas that have the longest known beginning of a prompt."""
        for key in reversed(keys):
            if having := replicas.intersection(self._replicas.get(key, ())):
                return having
        return set()


def _least_loaded(names: Set[str], loads: Mapping[str, int]) -> set[str]:
    """Return the replicas with the fewest requests, or one more."""
    fewest = min(loads[name] for name in names)
    return {name for name in names if loads[name] <= fewest + 1}


def _model_key(model: str) -> bytes:
    return b"model:" + model.encode("utf-8", "replace")


class PrefixRouter(RequestRouter):
    """Ray's router of the calls of `Replica.answer`."""

    def initialize_state(self, **keywords: Any) -> None:
        """Take the keywords of the deployment's router configuration."""
        self._known = PrefixMap(keywords["max_imbalance"])
        self._failed = False

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they are to be asked."""
        if pending_request is not None:
            # Ray asks again at once, and forever, if nobody says that it is to wait.
            pending_request.routing_context.should_backoff = True
        replicas = {_name(replica): replica for replica in candidate_replicas}
        request = _forwarded(pending_request)
        try:
            if request is not None and replicas:
                return self._ordered(request, replicas)
        except Exception:  # the API beneath may change
            self._warn()
        return [[*replicas.values()]]

    def _warn(self) -> None:
        if not self._failed:
            logger.exception("llcuda routes by load only: the choice by prefixes failed")
        self._failed = True

    def _ordered(
        self, request: ForwardedRequest, replicas: dict[str, RunningReplica]
    ) -> list[list[RunningReplica]]:
        if owner := request.facts.owner:
            keeping = [r for name, r in replicas.items() if replica_tag(name) == owner]
            if keeping:
                return [keeping]
        if request.is_kept:
            name = max(replicas, key=lambda name: hashlib.blake2b(name.encode()).digest())
            return [[replicas[name]]]
        usable = {n: r for n, r in replicas.items() if n not in request.avoided} or replicas
        queues = self.replica_queue_len_cache
        loads = {name: queues.get(r.replica_id) or 0 for name, r in usable.items()}
        best = self._known.choose(request.facts.model, request.facts.prefix, loads)
        others = [replica for name, replica in usable.items() if name != best]
        return [[usable[best]], others] if others else [[usable[best]]]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take the replicas that are there, and what other processes have sent them."""
        super().update_replicas(replicas)
        try:
            self._known.keep({_name(replica) for replica in replicas})
            for replica in replicas:
                for model, keys in replica.routing_stats.get(RECENT, ()):
                    self._known.add(model, keys, _name(replica))
        except Exception:  # as above
            self._warn()

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Note which replica has got a prompt."""
        request = _forwarded(pending_request)
        if request is not None:
            self._known.add(request.facts.model, request.facts.prefix, replica_id.unique_id)


def _name(replica: RunningReplica) -> str:
    name: str = replica.replica_id.unique_id
    return name


def _forwarded(pending: PendingRequest | None) -> ForwardedRequest | None:
    first = pending.args[0] if pending is not None and pending.args else None
    return first if isinstance(first, ForwardedRequest) else None
