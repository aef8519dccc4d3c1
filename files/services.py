"""Storing files, finding them, and who may.

Other packages use these functions; messaging tells us about membership through `set_membership_check`, because files
stand below messages.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import IO, Any, Protocol, cast
from uuid import UUID

from django.conf import settings
from django.core.files.base import File
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Sum
from django.utils.http import content_disposition_header

from core.clock import SYSTEM_CLOCK, Clock
from core.database import release_pooled
from core.ids import file_id as new_file_id
from files import content_types, filenames
from files.errors import EmptyFile, FileNotFound, FileTooLarge, QuotaExceeded, StorageTooSlow, StorageUnavailable
from files.incoming import Upload, incoming_dir, remove_older
from files.metrics import UPLOAD_BYTES
from files.models import FileGrant, StoredFile
from files.storage import FileStorage

LINK_LIFETIME_S = 3600
UNSENT_LIFETIME_S = 24 * 3600
FAILING_S = 30.0  # of a round of deleting: after that it ends with the next one that fails
FROM_OUTSIDE = ""  # the uploader of what people sent us over a platform
SAVES_AT_ONCE = 16  # of a process's 32 threads: a storage that hangs must leave some for all that needs none
SAVE_WAIT_S = 2.0
PING_WITHIN_S = 3.0  # a storage promises 2, a disk that hangs does not keep to it
_SPOOL_BYTES = 1024 * 1024
_saving = threading.BoundedSemaphore(SAVES_AT_ONCE)

log = logging.getLogger(__name__)


class Viewer(Protocol):
    """Whoever asks: `accounts` calls it a principal."""

    @property
    def user_id(self) -> str: ...
    @property
    def workspace_id(self) -> UUID: ...


MembershipCheck = Callable[[Viewer, Sequence[UUID]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A stored file, as far as others need to know it."""

    file_id: str
    workspace_id: UUID
    uploader_id: str
    conversation_id: UUID | None
    conversation: str
    filename: str
    content_type: str
    size: int
    checksum: str  # SHA-256, hex
    path: str
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Whose a new file is and where it was sent. ``conversation_id`` is the internal one of ``conversation``."""

    workspace_id: UUID
    uploader_id: str
    conversation_id: UUID | None = None
    conversation: str = ""


def _nobody(viewer: Viewer, conversation_ids: Sequence[UUID]) -> bool:
    del viewer, conversation_ids
    return False


_is_member: MembershipCheck = _nobody


def set_membership_check(check: MembershipCheck) -> None:
    """``check(viewer, conversation_ids)``: is the viewer a member of any of them? Until set, nobody is.

    It may raise `core.errors.Unavailable`.
    """
    global _is_member  # noqa: PLW0603 — set once, when the apps are ready
    _is_member = check


ConversationCheck = Callable[[Viewer, UUID], None]


def _anywhere(viewer: Viewer, conversation_id: UUID) -> None:
    del viewer, conversation_id


_check_conversation: ConversationCheck = _anywhere


def set_conversation_check(check: ConversationCheck) -> None:
    """``check(viewer, conversation_id)`` raises a NotFound for a conversation of others.

    One that does not exist yet is nobody's: a first message may still open it.
    """
    global _check_conversation  # noqa: PLW0603 — as above
    _check_conversation = check


def check_conversation(viewer: Viewer, conversation_id: UUID) -> None:
    """Raise unless the viewer may name this conversation with an upload."""
    _check_conversation(viewer, conversation_id)


# --- finding ------------------------------------------------------------------------------------------------------


def get(file_id: str, *, workspace_id: UUID) -> FileInfo | None:
    """The workspace's file; None when there is none, whoever else has one of that id."""
    row = _stored().filter(public_id=file_id, workspace_id=workspace_id).first()
    return _info(row) if row else None


def find(viewer: Viewer, file_id: str) -> FileInfo:
    """A file that the viewer may see: they uploaded it, or it was sent in a conversation of theirs.

    Raises FileNotFound for every other one, existing or not.
    """
    info = get(file_id, workspace_id=viewer.workspace_id)
    if info is None or not (info.uploader_id == viewer.user_id or _was_sent_to(viewer, file_id)):
        raise FileNotFound
    return info


def by_link(file_id: str) -> FileInfo:
    """A file whose link was checked already: the link is the permission."""
    row = _stored().filter(public_id=file_id).first()
    if row is None:
        raise FileNotFound
    return _info(row)


def _was_sent_to(viewer: Viewer, file_id: str) -> bool:
    granted = FileGrant.objects.filter(file__public_id=file_id).values_list("conversation_id", flat=True)
    conversation_ids = list(granted)
    return bool(conversation_ids) and _is_member(viewer, conversation_ids)


def grant(file_id: str, *, conversation_id: UUID) -> None:
    """Members of this conversation may see the file from now on; called when a message carries it, any number of times.

    The caller has checked that the sender may see the file (`find`). Raises FileNotFound.
    """
    with transaction.atomic():
        row = _stored().select_for_update().filter(public_id=file_id).only("id").first()
        if row is None:
            raise FileNotFound
        FileGrant.objects.get_or_create(file=row, conversation_id=conversation_id)


# --- how much ------------------------------------------------------------------------------------------------------


def check_quota(viewer: Viewer, new_bytes: int) -> None:
    """Raise QuotaExceeded if so many bytes more would be too many for one user.

    Uploads at the same time do not know of each other: as many as the API has threads may pass together.
    """
    kept = _stored().filter(workspace_id=viewer.workspace_id, uploader_id=viewer.user_id).aggregate(bytes=Sum("size"))
    if (kept["bytes"] or 0) + new_bytes > settings.USER_FILES_BYTES:
        raise QuotaExceeded(settings.USER_FILES_BYTES)


def prune_unsent(limit: int, *, clock: Clock = SYSTEM_CLOCK) -> int:
    """Remove up to ``limit`` files that users uploaded and that no message carried within a day; how many.

    Also what broken uploads left behind for a day in this machine's UPLOAD_TEMP_DIR and in the storage, which does not
    count. A file that cannot be deleted (a bucket may hold it) stops no other. Raises StorageUnavailable when none
    could be; what is left is tried by the next call.
    """
    before_ms = clock.now_ms() - UNSENT_LIFETIME_S * 1000
    remove_older(incoming_dir(), before_s=before_ms / 1000)
    storage().remove_leftovers(before_s=before_ms / 1000)
    unsent = _stored().filter(created_at_ms__lt=before_ms, grants__isnull=True).exclude(uploader_id=FROM_OUTSIDE)
    for pk in list(unsent.order_by("created_at_ms").values_list("pk", flat=True)[:limit]):
        _give_up(pk)
    return _delete_removed(limit, until_s=clock.monotonic_s() + FAILING_S, clock=clock)


def _give_up(pk: int) -> None:
    """Under the lock that `grant` takes: a message may carry the file at this very moment."""
    with transaction.atomic():
        row = _stored().select_for_update().filter(pk=pk).first()
        if row is not None and not row.grants.exists():
            row.state = StoredFile.State.REMOVED
            row.save(update_fields=["state"])


def _delete_removed(limit: int, *, until_s: float, clock: Clock) -> int:
    removed = StoredFile.objects.filter(state=StoredFile.State.REMOVED).exclude(path="")
    deleted, failed, fault = 0, 0, None
    for row in list(removed.order_by("?")[:limit]):  # by age those that cannot be deleted would always come first
        try:
            default_storage.delete(row.path)
        except Exception as error:  # as in `_save`
            failed, fault = failed + 1, error
            if clock.monotonic_s() > until_s:
                break
        else:
            row.path = ""  # last: as long as it stands there may be bytes
            row.save(update_fields=["path"])
            deleted += 1
    if fault:
        log.warning("files could not be deleted", exc_info=fault, extra={"count": failed})
        if not deleted:
            raise StorageUnavailable(f"The file storage deletes none of {failed} files, see the log.") from fault
    return deleted


# --- storing ------------------------------------------------------------------------------------------------------


def store_upload(upload: Upload, *, placement: Placement, clock: Clock = SYSTEM_CLOCK) -> FileInfo:
    """Keep a received file; durable when it returns. Raises EmptyFile, StorageUnavailable."""
    if not upload.size:
        raise EmptyFile
    measured = _Measured(size=upload.size, sha256=upload.sha256, head=upload.head)
    return _keep(
        upload,
        measured=measured,
        placement=placement,
        filename=upload.name or filenames.FALLBACK,
        declared=upload.content_type or "",
        file_id=new_file_id(),
        source="api",
        now_ms=clock.now_ms(),
    )


def store_bytes(
    stream: Iterable[bytes],
    *,
    placement: Placement,
    filename: str,
    content_type: str,
    file_id: str | None = None,
    deadline_s: float | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> FileInfo:
    """Keep what a platform sent us. With a ``file_id`` made by the caller a replay reads and stores nothing.

    The stream is drawn chunk by chunk; past 1 MiB it waits on disk. Raises FileTooLarge, EmptyFile,
    StorageUnavailable, and StorageTooSlow when the storage has not taken it by ``deadline_s`` (monotonic); what the
    stream itself raises passes through, and nothing is kept then.
    """
    if file_id and (known := get(file_id, workspace_id=placement.workspace_id)):
        return known
    if deadline_s is not None and clock.monotonic_s() >= deadline_s:
        raise StorageTooSlow
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=str(incoming_dir())) as spool:
        measured = _spooled(stream, spool)
        spool.seek(0)
        return _keep(
            File(spool, name=filename),
            measured=measured,
            placement=placement,
            filename=filenames.sanitized(filename),
            declared=content_type,
            file_id=file_id or new_file_id(),
            source="inbound",
            now_ms=clock.now_ms(),
            within_s=None if deadline_s is None else deadline_s - clock.monotonic_s(),
        )


@dataclass(frozen=True, slots=True)
class _Measured:
    size: int
    sha256: str
    head: bytes


def _spooled(stream: Iterable[bytes], spool: IO[bytes]) -> _Measured:
    digest, size, head = hashlib.sha256(), 0, b""
    for chunk in stream:
        size += len(chunk)
        if size > settings.MAX_FILE_BYTES:
            raise FileTooLarge(settings.MAX_FILE_BYTES)
        digest.update(chunk)
        head += chunk[: content_types.HEAD_BYTES - len(head)]
        spool.write(chunk)
    if not size:
        raise EmptyFile
    return _Measured(size, digest.hexdigest(), head)


def _keep(
    content: File[Any],
    *,
    measured: _Measured,
    placement: Placement,
    filename: str,
    declared: str,
    file_id: str,
    source: str,
    now_ms: int,
    within_s: float | None = None,
) -> FileInfo:
    """Bytes first, then the row: a crash in between leaves bytes that nobody points at, never a row without bytes."""
    kind = content_types.detect(measured.head, filename=filename, declared=declared)
    content.content_type = kind  # type: ignore[attr-defined]  # the S3 backend stores it with the object
    folder = placement.conversation_id or "unsent"
    path = f"{placement.workspace_id}/{folder}/{file_id}{filenames.extension(filename)}"
    _save(path, content, within_s=within_s)
    row, _ = StoredFile.objects.get_or_create(
        public_id=file_id,
        defaults={
            "workspace_id": placement.workspace_id,
            "uploader_id": placement.uploader_id,
            "conversation_id": placement.conversation_id,
            "conversation": placement.conversation,
            "filename": filename,
            "content_type": kind,
            "size": measured.size,
            "sha256": measured.sha256,
            "path": path,
            "created_at_ms": now_ms,
        },
    )
    UPLOAD_BYTES.labels(source).observe(measured.size)
    return _info(row)


def _save(path: str, content: File[Any], *, within_s: float | None = None) -> None:
    release_pooled()  # a large file takes its time
    try:
        if within_s is None:
            _handed_over(path, content)
        else:
            _handed_over_in_time(path, content, within_s)
    except StorageUnavailable as error:
        log.warning("a file was not stored", extra={"error": error.detail})
        raise
    except Exception as error:  # each backend raises classes of its own when it is away or full
        log.exception("a file could not be stored")
        raise StorageUnavailable from error


def _handed_over(path: str, content: File[Any]) -> None:
    if not _saving.acquire(timeout=SAVE_WAIT_S):
        raise StorageUnavailable("The file storage is too slow for more uploads at once.")
    try:
        default_storage.save(path, content)
    finally:
        _saving.release()


def _handed_over_in_time(path: str, content: File[Any], within_s: float) -> None:
    if not _ended(lambda: _handed_over(path, content), within_s):
        raise StorageTooSlow if _ended(storage().ping, PING_WITHIN_S) else StorageUnavailable


def _ended(work: Callable[[], None], within_s: float) -> bool:
    """Whether it did in time; what is under way then fails soon, as its file is closed.

    On a thread: a look at the clock as the file is read would come too late. S3's client holds two parts of 16 MiB
    that are sent after the last read, and waits for answers; a disk may hang.
    """
    ended: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result(None)

    threading.Thread(target=run, name="files", daemon=True).start()
    if not wait([ended], within_s).done:
        return False
    ended.result()
    return True


# --- reading ------------------------------------------------------------------------------------------------------


def open_bytes(file_id: str) -> File[Any]:
    """The stored bytes, to be closed by the caller. Raises FileNotFound, StorageUnavailable."""
    return open_path(by_link(file_id).path)


def open_path(path: str) -> File[Any]:
    """Bytes by their place in the storage. Raises StorageUnavailable."""
    try:
        return default_storage.open(path, "rb")
    except Exception as error:  # as in `_save`; a row without bytes means that the storage lost them
        log.exception("a stored file could not be opened")
        raise StorageUnavailable from error


def download_url(info: FileInfo, *, expires_in_s: int = LINK_LIFETIME_S) -> str:
    """A link that works without a token until it ends. The storage makes it: S3 presigns, ours points at the API."""
    headers = {
        "ResponseContentDisposition": content_disposition_header(True, info.filename) or "attachment",
        "ResponseContentType": info.content_type,
    }
    try:
        return storage().url(info.path, parameters=headers, expire=expires_in_s)
    except Exception as error:  # as in `_save`: signing may have to ask for credentials
        log.exception("no link could be made")
        raise StorageUnavailable from error


def storage() -> FileStorage:
    """The one that FILES_URL chose."""
    return cast(FileStorage, default_storage)


def _stored() -> Any:
    return StoredFile.objects.filter(state=StoredFile.State.STORED)


def _info(row: StoredFile) -> FileInfo:
    return FileInfo(
        file_id=row.public_id,
        workspace_id=row.workspace_id,
        uploader_id=row.uploader_id,
        conversation_id=row.conversation_id,
        conversation=row.conversation,
        filename=row.filename,
        content_type=row.content_type,
        size=row.size,
        checksum=row.sha256,
        path=row.path,
        created_at_ms=row.created_at_ms,
    )
