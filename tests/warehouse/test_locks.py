"""Locks between processes, by POSIX and by the calls of Windows (acted out here): one alone or several that share."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from payoff.warehouse import locks
from payoff.warehouse.locks import locked


class Bytes:
    """``msvcrt.locking``: a region of a file is locked by one handle, from its position on; it goes with the handle."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], int] = {}

    def locking(self, handle: int, how: int, length: int) -> None:
        assert how == self.LK_NBLCK
        file, at = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        region = [(file, at + i) for i in range(length)]
        if any(place in self.held for place in region):
            raise PermissionError(13, "Permission denied")
        self.held.update(dict.fromkeys(region, handle))

    def close(self, handle: int) -> None:
        self.held = {place: owner for place, owner in self.held.items() if owner != handle}
        os.close(handle)


@pytest.fixture(params=["posix", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "windows":
        acted = Bytes()

        def opened(place: Path, how: int, mode: int = 0o777) -> int:
            if Path(place).is_dir():
                raise PermissionError(13, "Permission denied", str(place))
            return os.open(place, how, mode)

        monkeypatch.setattr(locks, "_fcntl", None)
        monkeypatch.setattr(locks, "_msvcrt", acted)
        own = {name: getattr(os, name) for name in ("O_RDONLY", "O_RDWR", "O_CREAT", "SEEK_SET", "lseek", "fsync")}
        monkeypatch.setattr(locks, "os", SimpleNamespace(**own, open=opened, close=acted.close))
    return str(request.param)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_alone_or_shared(system: str, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    with ExitStack() as held:
        assert all(held.enter_context(locked(place, shared=True)) for _ in range(3))
        with locked(place) as alone:
            assert not alone
    with locked(place) as alone:
        assert alone
        for shared in (True, False):
            with locked(place, shared=shared) as too:
                assert not too
    with locked(place) as again:
        assert again
    assert not (kind == "folder" and list(place.iterdir()))  # what is in a folder is nobody's lock


def test_a_place_that_cannot_be_made_is_told(system: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "none" / "lock"):
        pass


def test_flushing_takes_files_and_folders(system: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    locks.flush([tmp_path / "a", tmp_path])


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from payoff.warehouse.locks import locked
with locked(Path({str(tmp_path)!r})) as had:
    print(had, flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with locked(tmp_path, shared=True) as had:
            assert not had
        other.kill()
        other.wait()
    with locked(tmp_path) as had:
        assert had


def test_a_run_is_imported_without_fcntl() -> None:
    code = """
import sys
sys.modules["fcntl"] = None
import importlib.util
own = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "fcntl" else own(name, package)
import payoff.run, payoff.warehouse.prepared, payoff.warehouse.state
from payoff.warehouse import locks
assert locks._fcntl is None
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
