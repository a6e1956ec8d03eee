"""What `serving/host.py` says of one replica: whether it is well, and which cores it computes with."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.session import usable_cores
from serving import host
from serving.lineup import Served
from serving.predictor import Predictor
from serving.recipe import Serve
from serving.rollout import Record
from serving.scheduler import Scheduler
from training.bundle import Bundle


def test_a_replica_is_well_while_its_model_answers_and_says_so_when_it_does_not(bundle: Bundle) -> None:
    predictor = Predictor(bundle, device="cpu")
    scheduler = Scheduler(predictor.prepare, predictor.answer)
    replica = object.__new__(host.Replica)
    served = Served("intent", "1", predictor, scheduler, Record(1), release=lambda: None)
    lineup: Any = SimpleNamespace(served=lambda: [served])
    replica._lineup = lineup
    asyncio.run(replica.check_health())
    predictor.task.reader = None  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        asyncio.run(replica.check_health())
    scheduler.close()
    assert scheduler.join(30)
    with pytest.raises(RuntimeError, match="intent version 1 is stuck"):
        asyncio.run(replica.check_health())


def test_cores_are_shared_out_so_that_all_replicas_fit() -> None:
    for bounds in ({"min": 1, "max": 1}, {"min": 1, "max": 4}, {"min": 3, "max": 8}):
        replicas = Serve.model_validate({"replicas": bounds}).replicas
        cpus, threads = host.replica_cores(replicas)
        assert cpus * replicas.max <= usable_cores() or replicas.max == 1
        assert threads == max(1, usable_cores() // replicas.min)
