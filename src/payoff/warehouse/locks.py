"""Locks between processes, on a folder or a file. A lock goes with its process, however that ends.

POSIX locks the place itself (``flock``). Windows cannot open a folder: there a byte of a file beside it is locked by whoever shares
it, and all of its bytes by whoever has it alone (``msvcrt.locking``).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_fcntl: Any = importlib.import_module("fcntl") if find_spec("fcntl") else None
_msvcrt: Any = importlib.import_module("msvcrt") if find_spec("msvcrt") else None

SHARERS = 64
"""On Windows, how many can share one lock at a time."""


@contextmanager
def locked(place: Path, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock: ``shared`` among those that read, else alone. Gives False where another process has it; never waits.

    ``place`` is a folder, or a file, which is made where it is missing. Raises OSError where it cannot be opened or made.
    """
    folder = place.is_dir()
    if _fcntl is None and folder:
        place = place.with_name(f"{place.name}.lock")
    how = os.O_RDONLY if _fcntl is not None and folder else os.O_RDWR | os.O_CREAT
    handle = os.open(place, how, 0o644)
    try:
        yield _had(handle, shared)
    finally:
        os.close(handle)


def _had(handle: int, shared: bool) -> bool:
    if _fcntl is not None:
        try:
            _fcntl.flock(handle, (_fcntl.LOCK_SH if shared else _fcntl.LOCK_EX) | _fcntl.LOCK_NB)
        except OSError:
            return False
        return True
    for at, length in [(at, 1) for at in range(SHARERS)] if shared else [(0, SHARERS)]:
        os.lseek(handle, at, os.SEEK_SET)
        try:
            _msvcrt.locking(handle, _msvcrt.LK_NBLCK, length)
        except OSError:
            continue
        return True
    return False


def flush(paths: Sequence[Path]) -> None:
    """To the disk, files or folders. On Windows a folder cannot be, nor a file that is not open for writing."""
    for path in paths:
        if _fcntl is None and path.is_dir():
            continue
        handle = os.open(path, os.O_RDONLY if _fcntl is not None else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
