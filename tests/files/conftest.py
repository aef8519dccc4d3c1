"""Alice who uploads, Bob who shares a conversation with her, Mallory outside of it, Trent in another workspace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from pytest_django import Settings

from accounts.models import DEFAULT_WORKSPACE_ID, User, Workspace
from accounts.tokens import access_token
from chat4all_project.parts import file_storage
from core.errors import NotFound
from core.ids import derived_id
from files import services
from files.services import Viewer

SHARED = derived_id(DEFAULT_WORKSPACE_ID, "shared")


class Person:
    """A user with a client that is signed in."""

    def __init__(self, user: User) -> None:
        self.user_id = user.public_id
        self.workspace_id = user.workspace_id
        self.api = Client(headers={"Authorization": f"Bearer {access_token(user)}"})


def _person(name: str, workspace_id: UUID = DEFAULT_WORKSPACE_ID) -> Person:
    user = User(username=name, workspace_id=workspace_id)
    user.set_unusable_password()
    user.save()
    return Person(user)


@pytest.fixture
def alice(db: None) -> Person:
    return _person("alice")


@pytest.fixture
def bob(db: None) -> Person:
    return _person("bob")


@pytest.fixture
def mallory(db: None) -> Person:
    return _person("mallory")


@pytest.fixture
def trent(db: None) -> Person:
    return _person("trent", Workspace.objects.create(slug="elsewhere", name="Elsewhere").id)


@pytest.fixture(autouse=True)
def own_folders(settings: Settings, tmp_path: Path) -> None:
    """Tests that run at the same time must not sweep one another's uploads and drafts away."""
    settings.UPLOAD_TEMP_DIR = str(tmp_path / "incoming")
    settings.STORAGES = {**settings.STORAGES, "default": file_storage((tmp_path / "files").as_uri())}


@pytest.fixture(autouse=True)
def members(request: pytest.FixtureRequest) -> Iterator[set[str]]:
    """The user ids in the conversation `SHARED`; messaging answers this in the real system."""
    inside: set[str] = set()

    def is_member(viewer: Viewer, conversation_ids: Sequence[UUID]) -> bool:
        return SHARED in conversation_ids and viewer.user_id in inside

    def check(viewer: Viewer, conversation_id: UUID) -> None:
        if conversation_id == SHARED and viewer.user_id not in inside:
            raise NotFound

    before = services._is_member, services._check_conversation
    services.set_membership_check(is_member)
    services.set_conversation_check(check)
    yield inside
    services.set_membership_check(before[0])
    services.set_conversation_check(before[1])


@pytest.fixture
def limit_bytes(settings: Settings) -> int:
    settings.MAX_FILE_BYTES = 100_000
    return 100_000


Send = Callable[..., dict[str, object]]


@pytest.fixture
def upload(alice: Person) -> Send:
    """Alice uploads; the answer's JSON."""

    def send(content: bytes = b"hello", name: str = "note.txt", **fields: str) -> dict[str, object]:
        answer = alice.api.post("/v1/files", {"file": SimpleUploadedFile(name, content), **fields})
        assert answer.status_code == 201, answer.content
        body: dict[str, object] = answer.json()
        return body

    return send
