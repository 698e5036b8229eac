"""Links in an adapter's folder: followed inside of it, and refused where they lead out of it.

An adapter may come from a stranger. A link in it to some file of the reader's would be read, copied and uploaded with it.
"""

import os
import re
from pathlib import Path

from lorank.errors import AdapterError

# `blobs/ab/abcd...` of a hub cache holds files that several of its repositories share.
_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def check_links(folder: str | Path) -> None:
    """Refuse a folder with a link, to a file or to a folder, that leads out of it.

    The snapshots of the hub's cache are folders of links to the blobs beside them; these are allowed.

    Raises:
        AdapterError: names the first such link and what it leads to.

    """
    root = Path(os.path.realpath(folder))  # the folder itself may be given by a link
    for where, folders, files in os.walk(root):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            if not path.is_symlink():
                continue
            target = Path(os.path.realpath(path))
            if not (target.is_relative_to(root) or _is_blob(target, root)):
                raise AdapterError(
                    f"{Path(folder) / path.relative_to(root)} is a link to {target}, which is outside of the adapter's folder; "
                    "put the file itself there if it belongs to the adapter, or take the link away"
                )


def _is_blob(target: Path, root: Path) -> bool:
    """Whether a file is among the blobs of the cached hub repository that `root` is a snapshot of, or is a part of one."""
    for snapshots in (root, *root.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            shared = repository.parent / "blobs"
            return target.is_relative_to(repository / "blobs") or (
                target.is_relative_to(shared) and bool(_SHARED_BLOB.fullmatch(target.relative_to(shared).as_posix()))
            )
    return False
