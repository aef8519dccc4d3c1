"""JSON files that only their owner may read: generated passwords and credentials."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_private(path: Path) -> Any:
    """What it holds; None when there is no such file. Raises ValueError naming a file that holds no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"{path} holds no JSON; remove it to have a new one made") from None


def write_private(path: Path, content: object) -> None:
    """Replace it at once: whoever reads sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file, indent=1)
    draft.replace(path)
