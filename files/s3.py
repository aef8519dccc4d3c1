"""Files in an S3 bucket, through django-storages. Only this module knows boto3."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.core.files.base import File
from storages.backends.s3 import S3Storage
from storages.utils import clean_name

from files.bucket_setup import DEFAULT_REGION, BucketSetUp, error_code
from files.errors import BucketMissing, StorageRefused, StorageUnavailable

MIB: Final = 1024 * 1024
CONNECT_TIMEOUT_S: Final = 2
READ_TIMEOUT_S: Final = 10.0  # for each answer, unless FILES_URL says another; a large file is many of them
ATTEMPTS: Final = 2
PROBE_TIMEOUT_S: Final = 1.0  # connecting, and again reading: within what /ready gives a check
PART_BYTES: Final = 16 * MIB  # 10,000 parts at most: files of up to 156 GiB
PARTS_AT_ONCE: Final = 4
READ_BYTES: Final = MIB // 4


def _transfer() -> TransferConfig:
    config = TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
    )
    config.max_in_memory_upload_chunks = 1  # counts for bytes that have no file of their own: else 10 parts wait
    return config


def _client_config(*, path_style: bool, connect_s: float, read_s: float, attempts: int) -> Config:
    return Config(
        signature_version="s3v4",
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        tcp_keepalive=True,
        max_pool_connections=32,
        # boto3's newer default, CRC32 in a trailer, is unknown to older servers. The signature covers a SHA-256 of each
        # body instead, over TLS too: every server checks that.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if path_style else "auto", "payload_signing_enabled": True},
    )


class BucketStorage(S3Storage):  # type: ignore[misc]  # django-storages has no types
    """Files in a private bucket; `url` presigns a link for whoever reaches ``public_endpoint`` (else ``endpoint``).

    Without ``access_key`` boto3 looks where it always does: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a role.
    One client serves all threads of a process; it is made on first use, and again in a child process.
    """

    def __init__(
        self,
        *,
        bucket: str,
        endpoint: str = "",
        public_endpoint: str = "",
        region: str = "",
        access_key: str = "",
        secret_key: str = "",
        timeout: float | str = READ_TIMEOUT_S,
    ) -> None:
        self._clients: dict[str, Any] = {}
        self._pid = os.getpid()
        self._opening = threading.Lock()
        self.public_endpoint = public_endpoint or endpoint
        keys = {"access_key": access_key, "secret_key": secret_key} if access_key else {}
        super().__init__(
            bucket_name=bucket,
            endpoint_url=endpoint or None,
            region_name=region or (DEFAULT_REGION if endpoint else None),
            transfer_config=_transfer(),
            client_config=_client_config(
                path_style=bool(endpoint), connect_s=CONNECT_TIMEOUT_S, read_s=float(timeout), attempts=ATTEMPTS
            ),
            default_acl=None,  # the bucket alone decides: many have ACLs switched off
            file_overwrite=True,
            querystring_auth=True,
            custom_domain=None,
            location="",
            **keys,
        )

    @property
    def connection(self) -> Any:
        """django-storages makes one for each thread, which costs some 100 ms and megabytes each."""
        return self._once("resource", lambda: self._resource(self.endpoint_url, self.client_config))

    @property
    def bucket(self) -> Any:
        return self.connection.Bucket(self.bucket_name)

    def url(
        self,
        name: str,
        parameters: Mapping[str, str] | None = None,
        expire: int | None = None,
        http_method: str | None = None,
    ) -> str:
        """A presigned link; signing asks nobody. ``parameters`` are S3's for the answer's headers."""
        signer = self._once("signer", lambda: self._resource(self.public_endpoint or None, self.client_config))
        link: str = signer.meta.client.generate_presigned_url(
            "get_object",
            Params={**(parameters or {}), "Bucket": self.bucket_name, "Key": clean_name(name)},
            ExpiresIn=self.querystring_expire if expire is None else expire,
            HttpMethod=http_method,
        )
        return link

    def ping(self) -> None:
        """Raise StorageUnavailable, naming the remedy, unless the bucket answers us within 2 s."""
        probe = _client_config(
            path_style=bool(self.endpoint_url), connect_s=PROBE_TIMEOUT_S, read_s=PROBE_TIMEOUT_S, attempts=1
        )
        client = self._once("probe", lambda: self._resource(self.endpoint_url, probe)).meta.client
        with _explained(self):
            client.list_objects_v2(Bucket=self.bucket_name, Prefix="ping/", MaxKeys=1)  # HEAD would not say why

    def remove_leftovers(self, *, before_s: float) -> None:
        """The bucket's own rule does, see `set_up`."""

    def set_up(self, *, cors_origins: Sequence[str], dry_run: bool) -> Iterator[str]:
        """Create the bucket and what belongs to it, or say what is missing; may be repeated. A line for each step.

        Raises StorageRefused for what only a person can mend, StorageUnavailable for what may pass.
        """
        with _explained(self):
            yield from BucketSetUp(
                self.connection.meta.client,
                self.bucket_name,
                self.region_name,
                stranger=self.unsigned_connection.meta.client,
                cors_origins=cors_origins,
                dry_run=dry_run,
            ).steps()

    @property
    def place(self) -> str:
        """For a person."""
        return f"bucket {self.bucket_name!r} at {self.endpoint_url or 'AWS'}"

    def _save(self, name: str, content: File[Any]) -> str:
        """From the disk in parts where it lies there; else from memory or a spool, a part at a time."""
        if not (uploaded := getattr(content, "temporary_file_path", None)):
            saved: str = super()._save(name, content)
            return saved
        content.flush()
        self.bucket.Object(name).upload_file(
            uploaded(), ExtraArgs=self._get_write_parameters(name, content), Config=self.transfer_config
        )
        return name

    def _open(self, name: str, mode: str = "rb") -> File[bytes]:
        if mode != "rb":
            raise ValueError("files are written whole, by `save`")
        raw = _Remote(self.bucket.Object(clean_name(name)))
        return File(io.BufferedReader(raw, READ_BYTES), name)

    def _once(self, kind: str, make: Any) -> Any:
        with self._opening:
            if self._pid != os.getpid():
                self._clients, self._pid = {}, os.getpid()
            if kind not in self._clients:
                self._clients[kind] = make()
            return self._clients[kind]

    def _session(self) -> Any:
        """One for all clients: each would read the same megabytes of S3's description again."""
        if "session" not in self._clients:
            self._clients["session"] = self._create_session()
        return self._clients["session"]

    def _resource(self, endpoint: str | None, config: Config) -> Any:
        return self._session().resource("s3", region_name=self.region_name, endpoint_url=endpoint, config=config)


class _Remote(io.RawIOBase):
    """An object's bytes as they are read: from where one seeks, without keeping any. Its faults are OSErrors."""

    def __init__(self, obj: Any) -> None:
        self._object = obj
        self._position = 0
        self._body: Any = None
        try:
            self._size: int = obj.content_length
        except ClientError as error:
            if error_code(error) == "404":
                raise FileNotFoundError(obj.key) from error
            raise

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset != self._position:
            self._drop()
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        if self._position >= self._size:
            return 0
        try:
            if self._body is None:
                self._body = self._object.get(Range=f"bytes={self._position}-")["Body"]
            data = self._body.read(len(buffer))
        except (BotoCoreError, ClientError) as error:
            self._drop()
            raise OSError(f"the storage failed: {type(error).__name__}") from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._drop()
        super().close()

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


@contextmanager
def _explained(storage: BucketStorage) -> Iterator[None]:
    """boto3's errors as StorageUnavailable that name the remedy."""
    try:
        yield
    except ClientError as error:
        raise _remedy(storage, error_code(error)) from error
    except BotoCoreError as error:
        raise StorageUnavailable(
            f"The file storage ({storage.place}) does not answer ({type(error).__name__}): see that it runs, and that "
            "FILES_URL names its endpoint and, unless a role or AWS_* variables give them, key and secret."
        ) from error


_REFUSED: Final = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "403", "ExpiredToken", "InvalidToken"}


def _remedy(storage: BucketStorage, code: str) -> StorageUnavailable:
    where = f"The file storage ({storage.place})"
    if code in {"NoSuchBucket", "404"}:
        return BucketMissing(f"{where} has no such bucket: run manage.py setup_storage, or correct FILES_URL.")
    if code in _REFUSED:
        return StorageRefused(f"{where} refuses us ({code}): correct key and secret in FILES_URL, or what they may do.")
    if code == "RequestTimeTooSkewed":
        return StorageRefused(f"{where} has another time than this machine: set both clocks (NTP).")
    return StorageUnavailable(f"{where} answers {code}: see its log, and check FILES_URL.")
