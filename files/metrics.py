"""What the files package counts."""

from prometheus_client import Counter, Histogram

KIB, MIB, GIB = 1024, 1024**2, 1024**3

UPLOAD_BYTES = Histogram(
    "chat4all_file_upload_bytes",
    "Size of stored files in bytes, by where they came from (api, inbound).",
    ["source"],
    buckets=(KIB, 16 * KIB, 128 * KIB, MIB, 5 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB, 2 * GIB),
)
for source in ("api", "inbound"):
    UPLOAD_BYTES.labels(source)  # the first increment of a series that was not there is invisible to rate()
UPLOADS_REFUSED = Counter("chat4all_file_uploads_refused_total", "Uploads refused, by error code.", ["code"])
DOWNLOADS = Counter("chat4all_file_downloads_total", "Downloads through the API's own links, by answer.", ["status"])
