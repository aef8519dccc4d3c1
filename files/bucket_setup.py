"""What `manage.py setup_storage` does to a bucket. With `files.s3` the only place that knows boto3."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from botocore.exceptions import ClientError

from files.errors import StorageRefused, StorageUnavailable

DEFAULT_REGION: Final = "us-east-1"  # servers of one's own seldom have regions, signatures always do
_ABORT_RULE: Final = {
    "ID": "chat4all-abort-broken-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
}
# What a server says that has no such call for a bucket. MinIO: 501 for CORS, and its parser knows no abort rule.
_NOT_OFFERED: Final = {"NotImplemented", "MethodNotAllowed", "MalformedXML", "InvalidArgument", "XNotImplemented"}
_CORS_METHODS: Final = ["GET", "HEAD", "PUT"]
_CORS_RULE: Final = {
    "ID": "chat4all-browsers",
    "AllowedMethods": _CORS_METHODS,
    "AllowedHeaders": ["*"],
    "ExposeHeaders": ["ETag", "Content-Range"],
    "MaxAgeSeconds": 3600,
}


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


class BucketSetUp:
    """One bucket brought to what we need, step by step; each step says in a line what it found or did."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        region: str | None,
        *,
        stranger: Any,
        cors_origins: Sequence[str],
        dry_run: bool,
    ) -> None:
        """``stranger`` is a client without credentials."""
        self._client = client
        self._stranger = stranger
        self._bucket = bucket
        self._region = region
        self._origins = list(cors_origins)
        self._dry_run = dry_run

    def steps(self) -> Iterator[str]:
        exists = self._exists()
        yield self._create(exists=exists)
        if not exists and self._dry_run:
            return
        yield self._abort_rule()
        if self._origins:
            yield self._cors()
        if not self._dry_run:
            yield self._try_out()

    def _exists(self) -> bool:
        try:
            self._client.list_objects_v2(Bucket=self._bucket, MaxKeys=1, Prefix="ping/")
        except ClientError as error:
            if error_code(error) != "NoSuchBucket":
                raise
            return False
        return True

    def _create(self, *, exists: bool) -> str:
        if exists:
            return f"bucket {self._bucket}: exists"
        if self._dry_run:
            return f"bucket {self._bucket}: missing, would be created"
        place = {"CreateBucketConfiguration": {"LocationConstraint": self._region}}
        try:
            self._client.create_bucket(
                Bucket=self._bucket, **(place if self._region not in {None, DEFAULT_REGION} else {})
            )
        except ClientError as error:
            if error_code(error) != "BucketAlreadyOwnedByYou":  # another setup at the same time
                raise
        return f"bucket {self._bucket}: created"

    def _abort_rule(self) -> str:
        ask = self._client.get_bucket_lifecycle_configuration
        rules = self._rules(ask, "Rules", none="NoSuchLifecycleConfiguration")
        if _ABORT_RULE["ID"] in {each.get("ID") for each in rules}:
            return "lifecycle: broken uploads are aborted after a day"
        if self._dry_run:
            return "lifecycle: no rule that aborts broken uploads after a day, would be added"
        try:
            self._client.put_bucket_lifecycle_configuration(
                Bucket=self._bucket, LifecycleConfiguration={"Rules": [*rules, _ABORT_RULE]}
            )
        except ClientError as error:
            if error_code(error) not in _NOT_OFFERED:
                raise
            return (
                "lifecycle: this server takes no rule that aborts broken uploads. MinIO does so by itself after 24 h "
                "(server setting api stale_uploads_expiry, MINIO_API_STALE_UPLOADS_EXPIRY=24h)"
            )
        return "lifecycle: broken uploads are aborted after a day from now on"

    def _rules(self, ask: Callable[..., Any], kind: str, *, none: str) -> list[Any]:
        """Those of a kind that are there: other people's stay. ``none`` is what a bucket without any answers."""
        try:
            found: list[Any] = ask(Bucket=self._bucket)[kind]
        except ClientError as error:
            if error_code(error) not in {none, *_NOT_OFFERED}:
                raise
            return []
        return found

    def _cors(self) -> str:
        named = ", ".join(self._origins)
        there = self._rules(self._client.get_bucket_cors, "CORSRules", none="NoSuchCORSConfiguration")
        others = [each for each in there if each.get("ID") != _CORS_RULE["ID"]]
        if self._dry_run:
            return f"CORS: would allow {', '.join(_CORS_METHODS)} from {named}"
        rules = [{**_CORS_RULE, "AllowedOrigins": self._origins}, *others]  # the first that fits a request counts
        try:
            self._client.put_bucket_cors(Bucket=self._bucket, CORSConfiguration={"CORSRules": rules})
        except ClientError as error:
            if error_code(error) not in _NOT_OFFERED:
                raise
            return (
                "CORS: this server has no CORS rules for one bucket (MinIO has one list for all). Set there: "
                f"MINIO_API_CORS_ALLOW_ORIGIN={','.join(self._origins)}"
            )
        return f"CORS: {', '.join(_CORS_METHODS)} from {named}"

    def _try_out(self) -> str:
        """What the system will do, once: a set-up that only looked would miss a policy that forbids one of them."""
        probe = {"Bucket": self._bucket, "Key": f"setup/{os.urandom(8).hex()}"}
        self._client.put_object(**probe, Body=b"chat4all")
        try:
            read = self._client.get_object(**probe)["Body"].read()
            self._refuse_public(probe)
        finally:
            self._client.delete_object(**probe)
        if read != b"chat4all":
            raise StorageUnavailable(f"Bucket {self._bucket} does not return what was written to it.")
        return "written, read and deleted an object, which a stranger could not read: works"

    def _refuse_public(self, probe: Mapping[str, str]) -> None:
        """Links carry the permission; a bucket that everybody reads would make them pointless.

        Tried, not asked: MinIO's policy status calls a bucket private that everybody may read and nobody write.
        """
        try:
            self._stranger.get_object(**probe)["Body"].close()
        except ClientError:
            return
        raise StorageRefused(
            f"Bucket {self._bucket} lets everybody in: remove the policy that does (mc anonymous set none, or the "
            "bucket's permissions), then run this again."
        )
