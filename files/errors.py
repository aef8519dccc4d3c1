"""What can be wrong with a file, its upload or its link."""

from __future__ import annotations

from core.errors import Chat4AllError, FieldError, InvalidRequest, NotFound, PermissionDenied, Unavailable


class FileNotFound(NotFound):
    """No such file, or none that the caller may know of: the same answer for both."""

    code = "file_not_found"
    title = "File not found"


class FileTooLarge(Chat4AllError):
    """More bytes than one file may have."""

    code = "file_too_large"
    http_status = 413
    title = "The file is too large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"A file may have up to {limit_bytes} bytes.")


class QuotaExceeded(Chat4AllError):
    """The uploader's files together would take more than one user may keep."""

    code = "file_quota_exceeded"
    http_status = 413
    title = "Your files take too much room"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"Your files together may have up to {limit_bytes} bytes.")


class EmptyFile(InvalidRequest):
    """A file of no bytes: nearly always a failed read on the client's side."""

    code = "file_empty"
    title = "The file is empty"

    def __init__(self) -> None:
        message = "The file has no bytes."
        super().__init__(message, fields=[FieldError("file", self.code, message)])


class ChecksumMismatch(InvalidRequest):
    """What arrived is not what the client says it sent: send it again."""

    code = "checksum_mismatch"
    title = "The checksum does not match"

    def __init__(self) -> None:
        message = "The SHA-256 of the bytes received differs from the one given; nothing was kept."
        super().__init__(message, fields=[FieldError("checksum", self.code, message)])


class MalformedUpload(Chat4AllError):
    """The body is not a whole multipart/form-data document: broken boundary, or cut off on the way."""

    code = "malformed_multipart"
    http_status = 400
    title = "The multipart body cannot be read"


class LengthRequired(Chat4AllError):
    """An upload says its Content-Length, so that one that is too large is refused before it is read."""

    code = "length_required"
    http_status = 411
    title = "Content-Length is required"


class BadSignature(PermissionDenied):
    """A download link that we did not sign, or that was changed since."""

    code = "bad_signature"
    title = "The link is not valid"


class LinkExpired(PermissionDenied):
    """A download link past its hour: ask for a new one."""

    code = "link_expired"
    title = "The link has expired"


class RangeNotSatisfiable(Chat4AllError):
    """The bytes asked for lie past the end of the file."""

    code = "range_not_satisfiable"
    http_status = 416
    title = "No such range"

    def __init__(self, size: int) -> None:
        super().__init__(f"The file has {size} bytes.", headers={"Content-Range": f"bytes */{size}"})


class StorageUnavailable(Unavailable):
    """The file storage does not answer or is full."""

    code = "files_unavailable"
    title = "The file storage does not answer"


class StorageTooSlow(StorageUnavailable):
    """It answers, and did not take the whole file in time: that is too large for its speed."""

    title = "The file storage did not take the file in time"


class BucketMissing(StorageUnavailable):
    """The server is there, our bucket is not."""

    may_pass = False


class StorageRefused(StorageUnavailable):
    """It answers, and refuses us."""

    may_pass = False
