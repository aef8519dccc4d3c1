"""MinIO: files as S3 has them."""

from __future__ import annotations

import os
import secrets
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from demo.ports import HOST
from tests.stack import downloads
from tests.stack.server import Server

PROBE_TIMEOUT_S = 3.0


class Minio(Server):
    """Keys are made up anew for each; there are no buckets."""

    name = "minio"
    variable = "TEST_S3_URL"
    default_port = 9000

    def __init__(self, directory: Path, *, port: int | None = None) -> None:
        super().__init__(directory, port=port)
        self.access_key, self.secret_key = secrets.token_hex(8), secrets.token_hex(16)

    @property
    def url(self) -> str:
        return f"http://{self.access_key}:{self.secret_key}@{HOST}:{self.port}"

    def fetch(self) -> None:
        downloads.minio()

    def command(self) -> Sequence[str]:
        return (str(downloads.minio()), "server", "--address", f"{HOST}:{self.port}", str(self.directory / "data"))

    def environment(self) -> Mapping[str, str]:
        return {
            **os.environ,
            "MINIO_ROOT_USER": self.access_key,
            "MINIO_ROOT_PASSWORD": self.secret_key,
            "MINIO_BROWSER": "off",
        }

    def why_not_ready(self) -> str:
        """Its /ready answers 200 before what it knows of its buckets is read, and until then each of them is refused
        (XMinioServerNotInitialized); its /cluster says so (503, bucket-metadata-offline)."""
        try:
            # http for good: our own server on loopback
            with urllib.request.urlopen(f"http://{HOST}:{self.port}/minio/health/cluster", timeout=PROBE_TIMEOUT_S):
                return ""
        except OSError as error:
            return str(error)
