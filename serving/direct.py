"""The short way in: a request is answered before Serve keeps its own books on it.

Behind HAProxy each replica has an HTTP server of its own, in which Serve names, counts, times and watches every
request, at several times the price of the edge, which does all of that itself. Serve lets middlewares be named that
stand before that (``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``). Ours hands requests to the edge of its process. What
Serve itself is asked passes on, and where there is no edge, as in Serve's proxies, everything does: the long way always
works.

A leaving replica loses nothing by it: its server ends when the last of its requests is answered, whoever counts them.
"""

from typing import Any

from serving.exchange import Receive, Scope, Send

IMPORT_PATH = "serving.direct.middlewares"
OF_SERVE = ("/-/healthz", "/-/routes")

_edges: list[Any] = []


def open_way(edge: Any) -> None:
    """Has requests to this process answered by ``edge``, an ASGI app that sends request ids back itself."""
    _edges[:] = [edge]


class Direct:
    """The outermost middleware of a replica's HTTP server."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or hands it on."""
        ours = _edges and scope["type"] == "http" and scope["path"] not in OF_SERVE
        await (_edges[0] if ours else self._app)(scope, receive, send)


def middlewares() -> list[Any]:
    """What Serve calls for its list of middlewares."""
    from starlette.middleware import Middleware

    return [Middleware(Direct)]
