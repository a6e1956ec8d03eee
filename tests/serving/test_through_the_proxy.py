"""Two replicas of Ray Serve behind its HAProxy: what they answer, and who can reach them."""

import json
import re
import socket
from collections.abc import Callable, Iterator

import pytest
from huggingface_hub import InferenceClient

from serving.predictor import Predictor
from tests.serving.conftest import TEXTS, MakeBundle
from tests.serving.served import KEY, Server, exchange, listening, served, sockets


@pytest.fixture(scope="module")
def server(make_bundle: MakeBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("served"), make_bundle, {"min": 2, "max": 2}) as running:
        yield running


@pytest.mark.usefixtures("clients_allowed")
def test_the_client_gets_what_predict_gets(server: Server) -> None:
    client = InferenceClient(model=f"{server.address}/models/intent", token=KEY)
    predictor = Predictor(server.bundles[0], device="cpu")
    for text, expected in zip(TEXTS, predictor.predict(TEXTS), strict=True):
        got = client.text_classification(text)
        assert [element.label for element in got] == [one["label"] for one in expected]
        assert [element.score for element in got] == pytest.approx([one["score"] for one in expected], abs=1e-5)


def test_keys_and_headers_through_the_proxy(server: Server, wait_until: Callable[..., None]) -> None:
    known = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    question = json.dumps({"inputs": "where is my card"})
    status, text = exchange(server, "POST", "/models/intent", {"Content-Type": "application/json"}, question)
    assert (status, json.loads(text)["error"]["code"]) == (401, "unauthorized")
    assert exchange(server, "GET", "/v2/health/ready", {})[0] == 200
    assert exchange(server, "GET", "/metrics", {})[0] == 401

    def goes_the_short_way() -> bool:
        """An id of Serve's form would tell of the long way, which HAProxy takes while it sees no replica well."""
        told = json.loads(exchange(server, "POST", "/models/intent", {"Content-Type": "application/json"}, question)[1])
        return re.fullmatch(r"[0-9a-f]{32}", told["error"]["request_id"]) is not None

    wait_until(goes_the_short_way)
    # Serve would answer 408 to the first; the proxy drops both.
    rude = {**known, "x-request-timeout-seconds": "0.000001", "x-request-disconnect-disabled": "?1"}
    assert exchange(server, "POST", "/models/intent", rude, question)[0] == 200
    status, text = exchange(server, "GET", "/metrics", {**known})
    counted = sum(float(count) for count in re.findall(r'headrace_requests_total\{.*outcome="ok".*\} (\S+)', text))
    assert (status, counted) == (200, len(TEXTS) + 1)  # of both replicas together


def test_nothing_of_the_edge_can_be_reached_from_another_machine(server: Server) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: only asks which address would be used
        outside = probe.getsockname()[0]
    if outside.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    for port in (server.port, 30000, 30001):
        with pytest.raises(OSError), socket.create_connection((outside, port), timeout=5):
            pass


def test_the_proxy_listens_for_this_machine_alone(server: Server, wait_until: Callable[..., None]) -> None:
    bound: set[str] = set()

    def three() -> bool:
        # Together: one that is told of a replica leaves its ports to the next, which for a moment has not all of them.
        there = listening()
        bound.clear()
        bound.update(there[inode] for proxy in server.proxies() for inode in sockets(proxy) if inode in there)
        return len(bound) >= 3

    wait_until(three)
    assert len(bound) == 3  # the public port, the metrics, the statistics
    assert {address.partition(":")[0] for address in bound} == {"0100007F"}, bound
