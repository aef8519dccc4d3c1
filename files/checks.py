"""Is what files stand on there?"""

from __future__ import annotations

from files import incoming, services
from files.errors import StorageRefused


def storage_answers() -> None:
    """Raise StorageUnavailable, naming the remedy, unless files can be taken in and kept."""
    services.storage().ping()
    try:
        incoming.incoming_dir()
    except OSError as error:
        raise StorageRefused(
            f"Uploads have no place to wait ({error.strerror}): make UPLOAD_TEMP_DIR a folder that can be written."
        ) from error
