"""Buckets for tests, on the server that TEST_S3_URL names; each test has its own, and it goes with the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import boto3

from chat4all_project.parts import file_storage
from tests.stack.servers import needed


def new_name() -> str:
    return f"test-{uuid4().hex[:12]}"


def url_of(bucket: str, **options: str) -> str:
    """FILES_URL for a bucket; `endpoint` and keys may be given."""
    parts = urlsplit(needed("s3"))
    endpoint = options.pop("endpoint", f"{parts.scheme}://{parts.hostname}:{parts.port}")
    key, secret = options.pop("key", parts.username or ""), options.pop("secret", parts.password or "")
    query = "".join(f"&{name}={quote(value, safe='')}" for name, value in options.items())
    return f"s3://{quote(key, safe='')}:{quote(secret, safe='')}@{bucket}?endpoint={quote(endpoint, safe='')}{query}"


def client() -> Any:
    parts = urlsplit(needed("s3"))
    return boto3.client(
        "s3",
        endpoint_url=f"{parts.scheme}://{parts.hostname}:{parts.port}",
        aws_access_key_id=parts.username,
        aws_secret_access_key=parts.password,
        region_name="us-east-1",
    )


@contextmanager
def removed_after(bucket: str) -> Iterator[str]:
    """Nothing is created here: what the test made of that name is removed."""
    try:
        yield bucket
    finally:
        s3 = client()
        try:
            for each in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
                s3.delete_object(Bucket=bucket, Key=each["Key"])
            s3.delete_bucket(Bucket=bucket)
        except s3.exceptions.NoSuchBucket:
            pass
        finally:
            s3.close()


def settings_of(url: str) -> dict[str, Any]:
    """STORAGES["default"] as the product's settings make it."""
    return dict(file_storage(url))
