"""The versions that one name stands for: which of them answers the next request, and which is only compared."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from serving.rollout import TRIAL, Record
from serving.shadow import Shadow

if TYPE_CHECKING:
    from serving.lineup import Served
    from serving.protocols import Call


@dataclass(frozen=True, eq=False)
class Route:
    """One version of a model, and what part of the requests it answers.

    Attributes:
        share: of 100.
        before: the version that it took over from; None where it was there from the start.
        reference: what that version did; None where this process did not see it.
    """

    served: "Served"
    share: int
    before: str | None = None
    reference: Record | None = None


class Model:
    """Everything behind one name.

    Attributes:
        wanted: its entry in the file of wanted models.
        routes: the versions that answer.
        leading: the version with the largest share; what the model is called by, and described as.
        shadow: compares one more version; None where there is none.
        refused: where what is wanted cannot be served, the ``versions`` that are not loaded, and whether that is tried
            ``again``; else None.
    """

    def __init__(self, wanted: dict[str, Any], routes: Sequence[Route], shadow: Shadow | None = None) -> None:
        self.wanted, self.routes, self.shadow = wanted, list(routes), shadow
        self.leading = max(routes, key=lambda route: route.share).served
        self.name = self.leading.name
        self.refused: dict[str, Any] | None = None
        self._credits = [0] * len(routes)
        self._lock = threading.Lock()  # a replica's two ways in have an event loop each

    def __str__(self) -> str:
        return ", ".join(f"version {route.served.version} ({route.share} %)" for route in self.routes)

    def pick(self) -> "Served":
        """The version that answers the next request.

        Smooth weighted round robin, as nginx has it: the route with the most credit, of which each gets its share in
        every round. The shares are exact over 100 requests, and a small one is spread out evenly.
        """
        with self._lock:
            credits = [credit + route.share for credit, route in zip(self._credits, self.routes, strict=True)]
            best = max(range(len(credits)), key=credits.__getitem__)
            credits[best] -= sum(route.share for route in self.routes)
            self._credits = credits
        return self.routes[best].served

    def of_version(self, version: str) -> "Served | None":
        """The version of that number, whatever its share; None where it does not answer here."""
        return next((route.served for route in self.routes if route.served.version == version), None)

    def all(self) -> "list[Served]":
        """All that is loaded for this name."""
        found = [route.served for route in self.routes]
        return [*found, self.shadow.served] if self.shadow and self.shadow.served not in found else found

    def on_trial(self, least: int) -> "Iterator[tuple[Served, Record | None]]":
        """The versions that are judged, each with the record it is judged by.

        The leading one after it took over, until it has answered enough; others for as long as they answer.
        """
        for route in self.routes:
            if route.served is not self.leading:
                if route.share:
                    yield route.served, self.leading.record
            elif route.before is not None and route.served.record.seen <= TRIAL * least:
                yield route.served, route.reference

    def afterwards(
        self, served: "Served", call: "Call", answers: list[Any], seconds: float
    ) -> Callable[[], None] | None:
        """What is to be done when the client has these answers: the shadow is asked what the leading version was."""
        if self.shadow is None or served is not self.leading:
            return None
        return partial(self.shadow.ask, call.inputs, call.parameters, answers, seconds, served.scheduler.busy)

    def about(self) -> dict[str, Any]:
        """What ``GET /models/{name}`` tells."""
        return {
            **self.leading.about(),
            "routes": [{"version": route.served.version, "share": route.share} for route in self.routes],
            "shadow": self.shadow.about() if self.shadow else None,
            "taken_back": self.wanted["taken_back"],
            "refused": self.refused,
        }
