"""The API's own description: it is valid, complete, and requests made from it get the answers that it promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.validation import validate_schema
from hypothesis import HealthCheck, Phase, given, settings
from rest_framework.status import HTTP_207_MULTI_STATUS
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.api.conftest import Person
from tests.wsgi import application

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

EXAMPLES: Final = 12
ROOT: Final = Path(__file__).resolve().parents[2]


def refuses_what_is_wrong(ctx: Any, response: Any, case: Any) -> bool | None:
    """A 207 is no acceptance: it refuses each thing by itself."""
    return None if response.status_code == HTTP_207_MULTI_STATUS else negative_data_rejection(ctx, response, case)


CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    refuses_what_is_wrong,
]


def _described() -> Any:
    """The description without its security: requests made from it are those of Alice."""
    document = json.loads(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))  # type: ignore[no-untyped-call]
    for operations in document["paths"].values():
        for operation in operations.values():
            del operation["security"]
    del document["components"]["securitySchemes"]
    found = schemathesis.openapi.from_dict(document)
    found.app = _closing
    return found


def _closing(environ: Any, start_response: Any) -> list[bytes]:
    """The API as a server runs it: the answer is closed once it is sent, which schemathesis's client leaves out."""
    answer: Any = application(environ, start_response)
    try:
        return [b"".join(answer)]
    finally:
        answer.close()


OPERATIONS = [each.ok() for each in _described().get_all_operations()]
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
FORMS = {"POST /v1/files"}  # an empty field of a form is a field that was left out, whatever its minimal length
CASES = [
    pytest.param(operation, mode, id=f"{mode.value} {operation.label}")
    for operation in OPERATIONS
    for mode in (GOOD, BAD)
    if mode is GOOD or ((operation.body or operation.query) and operation.label not in FORMS)
]


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_answers_as_described(operation: Any, mode: GenerationMode, alice: Person, accounts: None, chat: str) -> None:
    """What the description allows, and what it forbids, is answered by what it says, and never by a 500."""

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {alice.token}"}, checks=CHECKS)

    check()


@pytest.fixture
def schema(db: None) -> dict[str, Any]:
    document: dict[str, Any] = Client().get("/schema", headers={"Accept": "application/vnd.oai.openapi+json"}).json()
    return document


def test_is_valid_openapi(schema: dict[str, Any]) -> None:
    validate_schema(schema)  # type: ignore[no-untyped-call]


def test_describes_problems_and_names_every_operation(schema: dict[str, Any]) -> None:
    names = []
    for operations in schema["paths"].values():
        for operation in operations.values():
            names.append(operation["operationId"])
            assert "application/problem+json" in operation["responses"]["default"]["content"]
            assert operation["description"]
            assert not operation["description"].startswith(("GET ", "POST ", "DELETE ")), operation["operationId"]
            assert operation["tags"]
    assert len(names) == len(set(names))


def test_says_which_operations_need_a_token(schema: dict[str, Any]) -> None:
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            is_open = path.startswith(("/auth/", "/webhooks/", "/.well-known/"))
            assert operation["security"] == ([{}] if is_open else [{"bearer": []}]), path


def test_says_that_unknown_fields_are_refused(schema: dict[str, Any]) -> None:
    assert schema["components"]["schemas"]["NewMessageRequest"]["additionalProperties"] is False


def test_a_process_has_no_better_description_later_on(tmp_path: Path) -> None:
    """The first one that it gives, as a command or to the first who asks, has all that registers itself."""
    code = (
        "import django; django.setup()\n"
        "import chat4all_project.urls\n"
        "from drf_spectacular.generators import SchemaGenerator\n"
        "first, second = (SchemaGenerator().get_schema(request=None, public=True) for _ in range(2))\n"
        "assert first == second"
    )
    environment = {**os.environ, "STATE_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "chat4all_project.settings"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)
