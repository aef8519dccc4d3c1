"""Upload, look up, download."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from django.core.files.base import File
from django.http import HttpResponse, HttpResponseBase, HttpResponseRedirect, StreamingHttpResponse
from django.utils.http import content_disposition_header
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.status import HTTP_201_CREATED
from rest_framework.views import APIView

from core.clock import SYSTEM_CLOCK
from core.database import release_pooled
from core.errors import Chat4AllError
from core.ids import derived_id
from files import links, ranges, services
from files.errors import ChecksumMismatch
from files.metrics import DOWNLOADS, UPLOADS_REFUSED
from files.serializers import DownloadLink, FileDescription, UploadForm, described
from files.uploads import ENVELOPE_BYTES, UploadParser, announced_bytes

CHUNK_BYTES: Final = 256 * 1024


class FilesView(APIView):
    """POST /v1/files"""

    parser_classes = (UploadParser,)

    @extend_schema(
        operation_id="files_upload",
        tags=["files"],
        request={"multipart/form-data": UploadForm},
        responses={HTTP_201_CREATED: FileDescription},
    )
    def post(self, request: Request) -> Response:
        """Upload a file. Others see it once a message of yours carries it."""
        announced = announced_bytes(request)  # here too: without a length DRF takes the body for an empty one
        services.check_quota(_viewer(request), announced - ENVELOPE_BYTES)  # before the body is read
        release_pooled()  # which takes as long as the client likes
        form = UploadForm(data=request.data)
        form.is_valid(raise_exception=True)
        info = _stored(form.validated_data, viewer=_viewer(request))
        return Response(described(info), HTTP_201_CREATED, headers={"Location": f"/v1/files/{info.file_id}"})

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, Chat4AllError):
            UPLOADS_REFUSED.labels(exc.code).inc()
        return super().handle_exception(exc)


def _viewer(request: Request) -> services.Viewer:
    return cast(services.Viewer, request.user)  # a principal, as accounts' authentication sets it


def _stored(fields: dict[str, Any], *, viewer: services.Viewer) -> services.FileInfo:
    upload, conversation = fields["file"], fields.get("conversation_id", "")
    if upload.size and fields.get("checksum", upload.sha256) != upload.sha256:
        raise ChecksumMismatch
    conversation_id = derived_id(viewer.workspace_id, conversation) if conversation else None
    if conversation_id:
        services.check_conversation(viewer, conversation_id)
    placement = services.Placement(
        workspace_id=viewer.workspace_id,
        uploader_id=viewer.user_id,
        conversation_id=conversation_id,
        conversation=conversation,
    )
    services.check_quota(viewer, upload.size)
    return services.store_upload(upload, placement=placement)


class FileView(APIView):
    """GET /v1/files/{file_id}"""

    @extend_schema(operation_id="files_describe", tags=["files"], responses=FileDescription)
    def get(self, request: Request, file_id: str) -> Response:
        """What is known of a file."""
        return Response(described(services.find(_viewer(request), file_id)))


class DownloadView(APIView):
    """GET /v1/files/{file_id}/download"""

    @extend_schema(
        operation_id="files_download",
        tags=["files"],
        parameters=[OpenApiParameter("redirect", bool, description="1: answer 302 with the link as Location")],
        responses=DownloadLink,
    )
    def get(self, request: Request, file_id: str) -> HttpResponseBase:
        """A link to the bytes that works for an hour without a token."""
        link = services.download_url(services.find(_viewer(request), file_id))
        answer: HttpResponseBase
        if request.query_params.get("redirect") == "1":
            answer = HttpResponseRedirect(link)
        else:
            answer = Response({"download_url": link, "expires_in": services.LINK_LIFETIME_S})
        answer["Cache-Control"] = "no-store"
        return answer


class RawFileView(APIView):
    """GET /files/raw/{file_id}?expires=…&signature=…: the bytes, for whoever holds the link.

    The answer is never shown as a page of our origin: attachment, a policy that lets nothing run, and the nosniff of
    Django's SecurityMiddleware.
    """

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def perform_content_negotiation(self, request: Request, force: bool = False) -> tuple[Any, str]:
        del force  # an <img> accepts image/*, and our JSON is only for errors
        return super().perform_content_negotiation(request, force=True)

    @extend_schema(exclude=True)
    def get(self, request: Request, file_id: str) -> HttpResponseBase:
        links.check(
            file_id,
            expires=request.query_params.get("expires", ""),
            signature=request.query_params.get("signature", ""),
            now_s=SYSTEM_CLOCK.now_ms() / 1000,
        )
        info = services.by_link(file_id)
        release_pooled()  # as an upload's body, the answer takes as long as the client likes
        answer = _bytes_answer(request, info)
        DOWNLOADS.labels(answer.status_code).inc()
        return answer


def _bytes_answer(request: Request, info: services.FileInfo) -> HttpResponseBase:
    etag = f'"{info.checksum}"'
    if etag in request.headers.get("If-None-Match", ""):
        return _with_headers(HttpResponse(status=304), info, etag)
    wanted = None
    if request.headers.get("If-Range", etag) == etag:
        wanted = ranges.parse(request.headers.get("Range", ""), size=info.size)
    part = range(info.size) if wanted is None else wanted
    body = iter(()) if request.method == "HEAD" else _Part(services.open_path(info.path), part)
    answer = StreamingHttpResponse(body, status=200 if wanted is None else 206, content_type=info.content_type)
    answer["Content-Length"] = str(len(part))
    if wanted is not None:
        answer["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{info.size}"
    return _with_headers(answer, info, etag)


def _with_headers(answer: HttpResponseBase, info: services.FileInfo, etag: str) -> HttpResponseBase:
    answer["ETag"] = etag
    answer["Accept-Ranges"] = "bytes"
    answer["Cache-Control"] = "private, max-age=3600"
    answer["Content-Disposition"] = content_disposition_header(True, info.filename) or "attachment"
    answer["Content-Security-Policy"] = "sandbox; default-src 'none'"
    answer["Cross-Origin-Resource-Policy"] = "cross-origin"  # the console may be served from another origin
    return answer


class _Part:
    """Some bytes of an open file, chunk by chunk; closes the file even if nobody drew a byte."""

    def __init__(self, content: File[Any], part: range) -> None:
        self._content = content
        self._left = len(part)
        content.seek(part.start)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk: bytes = self._content.read(min(self._left, CHUNK_BYTES))
        if not chunk:
            raise StopIteration
        self._left -= len(chunk)
        return chunk

    def close(self) -> None:
        self._content.close()
