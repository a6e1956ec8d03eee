"""Ray Train's trainer without what nothing here uses, each of which is a process that takes seconds to start."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy

from cluster.session import on_cluster


class Trainer(TorchTrainer):  # type: ignore[misc,unused-ignore]
    """Trains with workers that read their rows from files.

    None of them asks for a shard of a Ray data set, so that there is no actor that gives them out. Where all of the
    session is this machine and ends with this process, there is no actor either that would free the workers' places
    after a run was killed, and none that would ask for further machines.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if _alone() else (DatasetsCallback,)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, unused)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if _alone() and isinstance(parts["scaling_policy"], FixedScalingPolicy):
            parts["scaling_policy"] = _AskingNobody(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class _AskingNobody(FixedScalingPolicy):  # type: ignore[misc,unused-ignore]
    def after_controller_start(self, train_run_context: Any) -> None:
        """There is no other machine to ask for."""

    def _maybe_send_resource_request(self) -> None:
        """Nor later."""


def _alone() -> bool:
    return not on_cluster() and ray.get_runtime_context().get_actor_id() is None
