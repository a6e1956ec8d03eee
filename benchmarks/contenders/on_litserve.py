"""LitServe: a LitAPI with batching, which LitServe's documentation of batching shows for such a model."""

import sys
from typing import Any

import litserve
from model import BATCH, WAIT_SECONDS, Model


class Classifier(litserve.LitAPI):
    """One text a request, several a forward pass."""

    def setup(self, device: str) -> None:
        self.model = Model()

    def decode_request(self, request: dict[str, Any]) -> str:
        return str(request["inputs"])

    def predict(self, texts: list[str]) -> list[Any]:
        return self.model.classify(texts)

    def encode_response(self, output: Any) -> Any:
        return [output]


if __name__ == "__main__":
    api = Classifier(max_batch_size=BATCH, batch_timeout=WAIT_SECONDS)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
