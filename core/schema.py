"""What the API's description says beyond views and serializers: problems, and that unknown fields are refused."""

from __future__ import annotations

from typing import Any, Final

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema

PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "description": "RFC 9457. Decide on `code`; docs/errors.md lists them.",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/FieldProblem"}},
    },
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "additionalProperties": False,
}
FIELD_PROBLEM: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "field": {"type": "string", "description": "Dotted, such as `members.0`; empty for the whole body."},
        "code": {"type": "string"},
        "message": {"type": "string"},
    },
    "required": ["field", "code", "message"],
    "additionalProperties": False,
}
_ANSWER: Final = {
    "description": "A problem, whatever went wrong.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def with_problems(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """A postprocessing hook of drf-spectacular: every operation may answer a problem."""
    result["components"]["schemas"] |= {"FieldProblem": FIELD_PROBLEM, "Problem": PROBLEM}
    for operations in result["paths"].values():
        for operation in operations.values():
            operation["responses"]["default"] = _ANSWER
    return result


class StrictObject(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """A StrictSerializer takes no field that it does not name."""

    target_class = "core.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> dict[str, Any]:
        mapped: dict[str, Any] = auto_schema._map_serializer(  # type: ignore[no-untyped-call]
            self.target, direction, bypass_extensions=True
        )
        return {**mapped, "additionalProperties": False}
