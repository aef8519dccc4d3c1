"""Both APIs as one ASGI application."""

from __future__ import annotations

from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator.control_api import ControlApi, ControlError
from simulator.graph import GraphError
from simulator.graph_api import GraphApi
from simulator.http import TooLarge, json_answer
from simulator.logs import log
from simulator.platform import Platform


def build_app(platform: Platform) -> Starlette:
    async def health(_request: Request) -> Response:
        return json_answer({"status": "ok", "accounts": len(platform.accounts.all())})

    async def metrics(_request: Request) -> Response:
        """What this process takes of the machine; what it was sent, the hub counts."""
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    def refuse(request: Request, error: Exception) -> Response:
        if request.url.path.startswith("/_control/"):
            refusal = _as_control_error(error)
            return json_answer(refusal.as_json(), refusal.status)
        graph_error = _as_graph_error(error)
        account = platform.accounts.get(request.path_params.get("account_id", ""))
        product = account.channel if account else "whatsapp"
        body, retry_after_s = graph_error.as_json(product=product), graph_error.retry_after_s
        return json_answer(body, graph_error.http_status, retry_after_s=retry_after_s)

    return Starlette(
        routes=[
            GraphApi(platform).send_route(),  # routes are tried in turn: the one that is busy first
            Route("/health", health, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            *ControlApi(platform).routes(),
            *GraphApi(platform).routes(),
        ],
        exception_handlers=dict.fromkeys((GraphError, ControlError, TooLarge, HTTPException, Exception), refuse),
    )


def _as_control_error(error: Exception) -> ControlError:
    match error:
        case ControlError():
            return error
        case GraphError():  # too much is pending already
            return ControlError(error.details, code="overloaded", status=error.http_status)
        case TooLarge():
            return ControlError("the body is too large", code="too_large", status=413)
        case HTTPException(status_code=status):
            phrase = HTTPStatus(status).phrase
            return ControlError(phrase, code=phrase.lower().replace(" ", "_"), status=status)
        case _:
            log("bug", error=type(error).__name__)
            return ControlError("the simulator has a bug", code="internal", status=500)


def _as_graph_error(error: Exception) -> GraphError:
    match error:
        case GraphError():
            return error
        case TooLarge():
            return GraphError(100, "Invalid parameter", "The request body is too large", http_status=413)
        case HTTPException(status_code=status):
            return GraphError(2500, "Unknown path components", HTTPStatus(status).phrase, http_status=status)
        case _:
            log("bug", error=type(error).__name__)
            return GraphError(1, "An unknown error occurred", "The simulator has a bug", http_status=500)
