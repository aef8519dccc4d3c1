"""docs/api.md is complete and true: it has every endpoint, field and code, and its examples answer as printed."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from django.test import Client
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from accounts.models import Workspace
from tests.api.conftest import APP_SECRET, VERIFY_TOKEN, Log, person
from tests.api.test_operators import bury, staff

pytestmark = pytest.mark.django_db(databases=["default", "messages"])

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
REFERENCE: Final = (DOCS / "api.md").read_text()
SECTIONS: Final = dict(re.findall(r"^### `([A-Z]+ \S+)`\n(.*?)(?=^##|\Z)", REFERENCE, re.DOTALL | re.MULTILINE))
VARIABLE: Final = re.compile(r"\$[A-Z_]+")
SENTENCES: Final = {"title", "detail"}  # of problems: for people, they may change
TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Json = dict[str, Any]
SCHEMA: Final[Json] = json.loads(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))  # type: ignore[no-untyped-call]
OPERATIONS: Final = {
    f"{method.upper()} {path}": operation
    for path, operations in SCHEMA["paths"].items()
    for method, operation in operations.items()
}


# --- complete ------------------------------------------------------------------------------------------------------


def test_has_every_endpoint_and_no_other() -> None:
    assert SECTIONS.keys() == OPERATIONS.keys()


def resolved(schema: Json) -> Json:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Json = SCHEMA["components"]["schemas"][name] if name else schema
    return found


def names_in(schema: Json) -> set[str]:
    """Every property, of the things inside too."""
    schema = resolved(schema)
    inner = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return {*schema.get("properties", {}), *(name for each in inner for name in names_in(each))}


def plain(schema: Json) -> Json:
    """OpenAPI 3.0 as JSON Schema, references followed; no field may be undescribed."""
    schema = dict(resolved(schema))
    if "properties" in schema:
        schema["properties"] = {name: plain(each) for name, each in schema["properties"].items()}
        schema["additionalProperties"] = False
    if "items" in schema:
        schema["items"] = plain(schema["items"])
    for group in ("oneOf", "allOf"):
        if group in schema:
            schema[group] = [plain(each) for each in schema[group]]
    return {"anyOf": [schema, {"type": "null"}]} if schema.pop("nullable", False) else schema


def described(operation: Json, answer: Any) -> Json:
    """The schema of this answer, as the description has it."""
    content = operation["responses"].get(str(answer.status_code), operation["responses"]["default"])["content"]
    return plain(content[answer["Content-Type"].partition(";")[0]]["schema"])


def fields_of(operation: Json) -> set[str]:
    """What can be sent to it (but for its path), and what a success holds."""
    sent = {each["name"] for each in operation.get("parameters", []) if each["in"] != "path"}
    bodies = [operation.get("requestBody", {}), *(a for s, a in operation["responses"].items() if s != "default")]
    contents = [content["schema"] for body in bodies for content in body.get("content", {}).values()]
    return sent | {name for schema in contents for name in names_in(schema)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_names_every_field(name: str) -> None:
    text = SECTIONS[name]
    assert {
        each for each in fields_of(OPERATIONS[name]) if f"`{each}`" not in text and f'"{each}"' not in text
    } == set()


@pytest.mark.parametrize("name", SECTIONS)
def test_names_only_codes_that_there_are(name: str) -> None:
    listed = set(re.findall(r"^\| \d+ \| `(\w+)`", (DOCS / "errors.md").read_text(), re.MULTILINE))
    errors = re.search(r"^Errors: (.*?)\n\n", SECTIONS[name], re.DOTALL | re.MULTILINE)
    named = set(re.findall(r"`(\w+)`", errors[1])) if errors else set()
    assert named <= listed


@pytest.mark.parametrize("name", [name for name in SECTIONS if name.partition(" ")[2].startswith("/v1/mess")])
def test_says_what_may_be_away(name: str) -> None:
    assert "`store_unavailable`" in SECTIONS[name]


# --- true ----------------------------------------------------------------------------------------------------------


def examples_of(section: str) -> list[tuple[str, str]]:
    """Pairs of a request and its answer."""
    blocks = re.findall(r"^```http\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return list(zip(blocks[::2], blocks[1::2], strict=True))


@dataclass
class Reader:
    """Somebody who tries the examples: sends what is printed, and learns what a $NAME stands for from the answers."""

    log: Log
    known: dict[str, str] = field(default_factory=lambda: {"$VERIFY_TOKEN": VERIFY_TOKEN})

    def send(self, block: str) -> Any:
        head, _, body = block.partition("\n\n")
        first, *headers = head.strip().splitlines()
        method, path = self.filled(first).split(" ", 1)
        given = {name: value for name, _, value in (self.filled(line).partition(": ") for line in headers)}
        content_type = given.pop("Content-Type", "application/json")
        sent = self.filled(body.rstrip("\n"))
        if content_type.startswith("multipart/"):
            sent = (sent + "\n").replace("\n", "\r\n")
        if "X-Hub-Signature-256" in given:
            signature = hmac.new(APP_SECRET.encode(), sent.encode(), hashlib.sha256).hexdigest()
            given["X-Hub-Signature-256"] = given["X-Hub-Signature-256"].replace("$SIGNATURE", signature)
        answer = Client().generic(method, path, sent, content_type=content_type, headers=given)
        if answer.status_code == 202:
            self.log.work_off()
        return answer

    def filled(self, text: str) -> str:
        return VARIABLE.sub(lambda match: self.known.get(match[0], match[0]), text)

    def compare(self, printed: Any, actual: Any, where: str = "answer") -> None:
        if isinstance(printed, dict):
            assert isinstance(actual, dict), where
            assert printed.keys() == actual.keys(), where
            for name, value in printed.items():
                if not ("request_id" in printed and name in SENTENCES and actual[name]):
                    self.compare(value, actual[name], f"{where}.{name}")
        elif isinstance(printed, list):
            assert len(printed) == len(actual), where
            for number, (one, other) in enumerate(zip(printed, actual, strict=True)):
                self.compare(one, other, f"{where}.{number}")
        elif isinstance(printed, str) and VARIABLE.fullmatch(printed):
            assert isinstance(actual, str), where
            assert self.known.setdefault(printed, actual) == actual or printed == "$REQUEST", where
        elif isinstance(printed, str) and TIME.fullmatch(printed):
            assert TIME.fullmatch(actual), where
        else:
            assert printed == actual, where


def test_every_example_answers_as_printed(accounts: None, log: Log, elsewhere: Workspace) -> None:
    reader = Reader(log)
    bury(elsewhere, error="worker_lost")  # in a workspace of its own: the log keeps those of other tests
    reader.known["$OPERATORS_TOKEN"] = staff(person("operator", elsewhere)).token
    examples = [(name, each) for name, text in SECTIONS.items() for each in examples_of(text)]
    assert {name for name, _ in examples} == OPERATIONS.keys()
    for name, (request, printed) in examples:
        answer = reader.send(request)
        head, _, body = printed.partition("\n\n")
        assert head.strip() == f"HTTP {answer.status_code}", (request, answer.content)
        if "json" in answer.get("Content-Type", ""):
            reader.compare(json.loads(body), answer.json(), request.splitlines()[0])
            Draft202012Validator(described(OPERATIONS[name], answer)).validate(answer.json())
        else:
            assert answer.content.decode() == body.strip()
