"""Ray Train's trainer without what nothing here uses, each of which is a process that takes seconds to start."""

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from cluster.session import on_cluster


class Trainer(TorchTrainer):  # type: ignore[misc,unused-ignore]
    """Trains with workers that read their rows from files.

    None of them asks for a shard of a Ray data set, so that there is no actor that gives them out. Nor is there one
    that would free the workers' places after a run was killed, where all of the session ends with this process.
    """

    def _create_default_callbacks(self) -> list[Any]:
        alone = not on_cluster() and ray.get_runtime_context().get_actor_id() is None
        unused = (DatasetsCallback, PlacementGroupCleanerCallback) if alone else (DatasetsCallback,)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, unused)]
