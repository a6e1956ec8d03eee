"""BentoML: a service with a batchable API, which takes a list and is given those of several requests as one."""

import os
from typing import Any

import bentoml
from model import BATCH, Model


@bentoml.service(workers=1, resources={"cpu": str(os.cpu_count() or 1)}, traffic={"timeout": 60})
class Classifier:
    """``POST /classify`` with ``{"texts": ["…"]}``."""

    def __init__(self) -> None:
        self.model = Model()

    @bentoml.api(batchable=True, max_batch_size=BATCH)
    def classify(self, texts: list[str]) -> list[Any]:
        return self.model.classify(texts)
