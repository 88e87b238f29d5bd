"""Files of a folder, as people and Kubernetes put them there.

A ConfigMap or Secret volume is a folder whose entries are links into a hidden folder that is swapped as a whole:

    certs.pem -> ..data/certs.pem        ..data -> ..2026_01_02_03_04_05.678        ..2026_01_02_03_04_05.678/certs.pem

Rules:
- Such a volume is read in its hidden folder, found once, so that no reading mixes an old and a new generation.
- A read is bounded, never waits (a pipe is no file) and follows a link only where the caller allows it.

What does not belong here: what the files mean.
Source: kubernetes/kubernetes, pkg/volume/util/atomic_writer.go.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_DATA_LINK: Final = "..data"
_CHUNK_BYTES: Final = 64 * 1024  # asked for at once, so that a small file costs little however large it may be
_NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_FOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)


def current_generation(folder: Path) -> Path:
    """The folder to read instead of `folder`: the hidden one of a Kubernetes volume, else `folder` itself.

    Raises:
        OSError: the folder cannot be read.
    """
    link = folder / _DATA_LINK
    if not link.is_symlink():
        return folder
    target = link.readlink()
    # Kubernetes links to a sibling. Anything else is not its doing, and not followed.
    return folder / target if len(target.parts) == 1 else folder


def locate_file(path: Path) -> Path:
    """The file to read instead of `path`: that of the hidden folder when `path` is an entry of a Kubernetes volume."""
    if path.is_symlink() and path.readlink() == Path(_DATA_LINK, path.name):
        return current_generation(path.parent) / path.name
    return path


def read_file(path: Path, *, max_bytes: int, follow_links: bool) -> bytes:
    """Read a regular file.

    Args:
        path: the file.
        max_bytes: the most that a good file has.
        follow_links: whether `path` may be a symbolic link.

    Raises:
        OSError: it cannot be read, is larger, is no regular file, or is a link that may not be followed.
    """
    descriptor = os.open(path, os.O_RDONLY | _NO_WAIT | (0 if follow_links else _NO_FOLLOW))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        data = bytearray()
        while chunk := file.read(_CHUNK_BYTES):
            data += chunk
            if len(data) > max_bytes:
                raise OSError(f"more than {max_bytes} bytes")
    return bytes(data)


def reason(error: OSError) -> str:
    """What went wrong, without the path."""
    return error.strerror or str(error)
