"""FILES_URL and `manage.py setup_storage`; a storage that hangs."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator
from django.core.exceptions import ImproperlyConfigured
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from pytest_django import Settings

from chat4all_project.parts import file_storage
from files import services
from files.bucket_setup import BucketSetUp
from files.errors import BucketMissing, StorageRefused, StorageUnavailable
from tests.files import buckets

SECRET = "topsecret"

# --- the URL ------------------------------------------------------------------------------------------------------


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "what? 100% ção"
    assert file_storage(folder.as_uri())["OPTIONS"] == {"location": str(folder)}


def test_a_bucket_has_keys_and_options() -> None:
    storage = file_storage(
        "s3://k%2Fey:s%3Acr%40t@b.name?endpoint=https%3A%2F%2Fs3.example.com&region=eu-1&timeout=2.5"
    )
    assert storage == {
        "BACKEND": "files.s3.BucketStorage",
        "OPTIONS": {
            "bucket": "b.name", "access_key": "k/ey", "secret_key": "s:cr@t",
            "endpoint": "https://s3.example.com", "region": "eu-1", "timeout": "2.5",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(SECRET, id="no URL"),
        pytest.param(f"ftp://key:{SECRET}@host/x", id="another protocol"),
        pytest.param("file://relative/path", id="a folder on a host"),
        pytest.param("s3://", id="no bucket"),
        pytest.param(f"s3://key:{SECRET}@", id="keys only"),
        pytest.param(f"s3://key@bucket?endpoint=http://{SECRET}", id="no secret"),
        pytest.param(f"s3://:{SECRET}@bucket", id="no key"),
        pytest.param(f"s3://key:{SECRET}@bucket/folder", id="a path"),
        pytest.param(f"s3://key:{SECRET}@bucket:9000", id="a port"),
        pytest.param(f"s3://key:{SECRET}@bucket?endpoint=s3.example.com", id="an endpoint without http"),
        pytest.param(f"s3://key:{SECRET}@bucket?public_endpoint=", id="an empty one"),
        pytest.param(f"s3://key:{SECRET}@bucket?end_point=http://x", id="a misspelt option"),
        pytest.param(f"s3://key:{SECRET}@bucket?timeout=0", id="no time"),
        pytest.param(f"s3://key:{SECRET}@bucket?timeout=soon", id="no number"),
    ],
)
def test_a_wrong_url_is_told_with_a_hint_and_without_its_secret(url: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=r"FILES_URL.*Hint: ") as refusal:
        file_storage(url)
    assert SECRET not in str(refusal.value)


# --- the command --------------------------------------------------------------------------------------------------


def use(settings: Settings, url: str) -> None:
    settings.STORAGES = {**settings.STORAGES, "default": buckets.settings_of(url)}


def set_up(*arguments: str) -> str:
    out = io.StringIO()
    call_command("setup_storage", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_makes_the_folder_once_asked_in_earnest(settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "files"
    use(settings, folder.as_uri())
    assert "would be created" in set_up("--dry-run")
    assert not folder.exists()
    assert "can be written" in set_up()
    assert "can be written" in set_up()
    assert folder.is_dir()


def test_a_folder_that_cannot_be_is_told(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    use(settings, (tmp_path / "file" / "inside").as_uri())
    with pytest.raises(CommandError, match=r"cannot be written .*FILES_URL"):
        set_up("--timeout", "0")


@pytest.mark.cluster
def test_makes_the_bucket_and_again_changes_nothing(settings: Settings) -> None:
    name = buckets.new_name()
    with buckets.removed_after(name):
        use(settings, buckets.url_of(name))
        with pytest.raises(BucketMissing, match="setup_storage"):
            services.storage().ping()
        assert "missing, would be created" in set_up("--dry-run")
        with pytest.raises(BucketMissing):
            services.storage().ping()
        assert "created" in set_up("--cors-origin", "https://chat.example.com")
        services.storage().ping()
        default_storage.save("kept.txt", ContentFile(b"x"))
        told = set_up("--cors-origin", "https://chat.example.com")
        assert "exists" in told
        assert "works" in told
        assert "https://chat.example.com" in told  # set, or what to set on a server that has one list for all buckets
        left = [each["Key"] for each in buckets.client().list_objects_v2(Bucket=name)["Contents"]]
        assert left == ["kept.txt"]


@pytest.mark.cluster
def test_other_rules_of_the_bucket_stay(settings: Settings) -> None:
    name = buckets.new_name()
    with buckets.removed_after(name):
        use(settings, buckets.url_of(name))
        set_up()
        s3 = buckets.client()
        theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 3}}
        s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [theirs]})
        set_up()
        rules = s3.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
        assert "theirs" in {each["ID"] for each in rules}


class WithCors:
    """A client of the tests' MinIO that keeps CORS rules of a bucket, as AWS and VersityGW do, and MinIO does not."""

    def __init__(self, s3: Any) -> None:
        self._s3 = s3
        self.rules: list[dict[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._s3, name)

    def get_bucket_cors(self, **_: Any) -> dict[str, Any]:
        if not self.rules:
            raise ClientError({"Error": {"Code": "NoSuchCORSConfiguration"}}, "GetBucketCors")
        return {"CORSRules": self.rules}

    def put_bucket_cors(self, **wanted: Any) -> None:
        shape = self._s3.meta.service_model.operation_model("PutBucketCors").input_shape
        assert not ParamValidator().validate(wanted, shape).generate_report()
        self.rules = wanted["CORSConfiguration"]["CORSRules"]


@pytest.mark.cluster
def test_cors_rules_of_others_stay_and_ours_is_replaced() -> None:
    name, s3 = buckets.new_name(), WithCors(buckets.client())

    def set_up_for(*origins: str, dry_run: bool = False) -> None:
        unsigned = Config(signature_version=UNSIGNED)
        nobody = boto3.client("s3", endpoint_url=s3.meta.endpoint_url, region_name="us-east-1", config=unsigned)
        list(BucketSetUp(s3, name, None, stranger=nobody, cors_origins=origins, dry_run=dry_run).steps())

    def allowed() -> list[list[str]]:
        return [each["AllowedOrigins"] for each in s3.rules]

    theirs: list[dict[str, Any]] = [
        {"ID": "theirs", "AllowedOrigins": ["https://shop.example.com"], "AllowedMethods": ["GET"]},
        {"AllowedOrigins": ["https://nameless.example.com"], "AllowedMethods": ["DELETE"]},
    ]
    with buckets.removed_after(name):
        set_up_for("https://chat.example.com")
        assert allowed() == [["https://chat.example.com"]]
        s3.rules += theirs
        set_up_for("https://new.example.com", "https://chat.example.com")
        assert allowed()[0] == ["https://new.example.com", "https://chat.example.com"]
        assert s3.rules[1:] == theirs
        before = s3.rules
        set_up_for("https://another.example.com", dry_run=True)
        assert s3.rules == before


@pytest.mark.cluster
def test_refuses_a_bucket_that_everybody_reads(settings: Settings) -> None:
    name = buckets.new_name()
    with buckets.removed_after(name):
        use(settings, buckets.url_of(name))
        set_up()
        allow = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{name}/*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
        buckets.client().put_bucket_policy(Bucket=name, Policy=policy)
        with pytest.raises(CommandError, match="lets everybody in"):
            set_up("--timeout", "0")


@pytest.mark.cluster
def test_wrong_keys_are_not_waited_for(settings: Settings) -> None:
    use(settings, buckets.url_of(buckets.new_name(), secret="another-secret"))
    with pytest.raises(StorageRefused, match="correct key and secret"):
        services.storage().ping()
    with pytest.raises(CommandError, match="correct key and secret"):
        set_up("--timeout", "600")


class Said(io.StringIO):
    """What a command said; ``at_first_wait`` is called at the first sign that it waits."""

    def __init__(self, at_first_wait: Callable[[], None]) -> None:
        super().__init__()
        self._calls = [at_first_wait]

    def write(self, text: str) -> int:
        if "waiting, " in text and self._calls:
            self._calls.pop()()
        return super().write(text)


@pytest.mark.cluster
def test_waits_for_a_server_that_starts_and_says_so(settings: Settings) -> None:
    name = buckets.new_name()
    with buckets.removed_after(name), closing(buckets.Way()) as way:
        use(settings, buckets.url_of(name, endpoint=f"http://127.0.0.1:{way.port}"))
        with pytest.raises(CommandError, match=r"does not answer .*Given up after 0 s"):
            set_up("--timeout", "0")
        said = Said(way.open)
        call_command("setup_storage", "--timeout", "60", stdout=said, stderr=said)
        assert "waiting, " in said.getvalue()
        assert "works" in said.getvalue()


# --- when it hangs ------------------------------------------------------------------------------------------------


class Watched(ContentFile):  # type: ignore[type-arg]  # generic in the stubs only
    """Tells when a storage begins to read it."""

    def __init__(self, content: bytes, begun: threading.Semaphore) -> None:
        super().__init__(content)
        self._begun = begun

    def seek(self, *args: Any) -> int:
        self._begun.release()
        return super().seek(*args)  # type: ignore[no-any-return]


@pytest.mark.cluster
def test_a_storage_that_hangs_takes_no_more_than_its_places(settings: Settings) -> None:
    """Whoever comes next is told so soon, and the process's other threads stay free."""
    buckets.url_of("x")  # skips where the suite has no S3, and with it no driver
    begun = threading.Semaphore(0)

    def save() -> None:
        with pytest.raises(StorageUnavailable):
            services._save("a.txt", Watched(b"x", begun))

    with socket.create_server(("127.0.0.1", 0), backlog=200) as hole:
        use(settings, f"s3://a:b@hanging?endpoint=http://127.0.0.1:{hole.getsockname()[1]}&timeout=30")
        default_storage.url("x")  # boto3 is loaded
        threads = [threading.Thread(target=save, daemon=True) for _ in range(services.SAVES_AT_ONCE)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert begun.acquire(timeout=30)
        with pytest.raises(StorageUnavailable, match="too slow for more"):
            services._save("b.txt", ContentFile(b"x"))
    for thread in threads:  # the hole is closed: they all end
        thread.join(60)
        assert not thread.is_alive()
