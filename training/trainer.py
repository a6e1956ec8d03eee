"""Ray Train's trainer without what nothing here uses, each of which is a process that takes seconds to start."""

import asyncio
import logging
from typing import Any

import ray
from ray._private.log import PlainRayHandler
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup

from cluster.errors import reason
from cluster.progress import say
from cluster.session import on_cluster


class Trainer(TorchTrainer):  # type: ignore[misc,unused-ignore]
    """Trains with workers that read their rows from files.

    None of them asks for a shard of a Ray data set, so that there is no actor that gives them out. Where all of the
    session is this machine and ends with this process, the controller is a part of it, there is no actor that would
    free the workers' places after a run was killed, and none that would ask for further machines.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if _alone() else (DatasetsCallback,)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, unused)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not _alone():
            return super()._initialize_and_run_controller(**parts)
        if isinstance(parts["scaling_policy"], FixedScalingPolicy):
            parts["scaling_policy"] = _AskingNobody(self.scaling_config)
        controller = _ControllerHere(**parts)
        asyncio.run(controller.run())
        return controller.get_result()


class _AskingNobody(FixedScalingPolicy):  # type: ignore[misc,unused-ignore]
    def after_controller_start(self, train_run_context: Any) -> None:
        """There is no other machine to ask for."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""


class _WorkersHere(WorkerGroup):  # type: ignore[misc,unused-ignore]
    """Workers on this machine, which have this process's environment as it is.

    With none of their own they can be the processes that the session has started beforehand.
    """

    @staticmethod
    def _get_worker_runtime_env(custom_runtime_env: Any) -> Any:
        return custom_runtime_env

    def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
        begun = [
            worker.actor.init_train_context.remote(
                **{name: values[place] for name, values in train_context_args.items()},
                distributed_context=worker.distributed_context,
                train_run_context=self._train_run_context,
                storage_context=self._storage_context,
                synchronization_actor=sync_actor,
                worker_callbacks=self._worker_callbacks_to_propagate,
                controller_actor=None,  # they would ask it for the checkpoints that were reported
            )
            for place, worker in enumerate(workers)
        ]
        ray.get(begun)
        self._decorate_worker_log_file_paths(workers)


class _ControllerHere(TrainController):  # type: ignore[misc,unused-ignore]
    """Tells in a line why a run is begun again; what it logs besides, of all that was lost, stays in its files."""

    worker_group_cls = _WorkersHere

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        logger = logging.getLogger("ray.train")
        for handler in logger.handlers[:]:
            if isinstance(handler, PlainRayHandler):
                logger.removeHandler(handler)

    def _execute_failure_decision(self, decision: Any, training_failed_error: Exception, **given: Any) -> Any:
        if decision == FailureDecision.RETRY:
            why = reason(training_failed_error).partition(". ")[0]
            say(f"training was interrupted and goes on from its newest checkpoint: {why}", "WARNING")
        return super()._execute_failure_decision(decision, training_failed_error, **given)


def _alone() -> bool:
    return not on_cluster() and ray.get_runtime_context().get_actor_id() is None
