"""How `make test` comes by PostgreSQL, with stand-ins for apt-get, sudo and id: one line on what was done, and never a failure."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("postgresql.sh")
INSTALLS = (
    'case "$*" in *update*) exit 1;; *" install "*postgresql) mkdir -p "$HOME/15/bin"; : >"$HOME/15/bin/initdb";; esac'
)
WITHOUT_NETWORK = "echo E: could not resolve >&2; exit 100"
WITH_RIGHTS, WITHOUT = 'shift; echo "$@" >>"$HOME/asked"; exec "$@"', "exit 1"


def made(folder: Path, uid: int, here: bool = False, **stand_ins: str) -> tuple[str, str]:
    """What the script says (stdout, stderr) where only these programs are."""
    programs, packaged = folder / "programs", folder / "postgresql"
    programs.mkdir()
    packaged.mkdir()
    if here:
        (packaged / "15" / "bin").mkdir(parents=True)
        (packaged / "15" / "bin" / "initdb").touch()
    for name in ("sh", "env", "ls", "mkdir", "timeout", "true"):
        (programs / name).symlink_to(str(shutil.which(name)))
    for name, body in {"id": f"echo {uid}", **stand_ins}.items():
        program = programs / name.replace("_", "-")
        program.write_text(f"#!{programs / 'sh'}\n{body}\n")
        program.chmod(0o755)
    done = subprocess.run(
        [programs / "sh", SCRIPT, packaged],
        env={"PATH": str(programs), "HOME": str(packaged)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert len((done.stdout + done.stderr).splitlines()) == 1
    return done.stdout, done.stderr


def test_what_is_here_is_left_alone(tmp_path: Path) -> None:
    told, _ = made(tmp_path, 0, here=True, apt_get='echo "called $*"')
    assert told == "PostgreSQL is here; the tests start a server of their own\n"


@pytest.mark.parametrize(("uid", "sudo"), [(0, WITHOUT), (1000, WITH_RIGHTS)])
def test_it_is_installed_by_root_or_by_sudo_that_asks_nothing(uid: int, sudo: str, tmp_path: Path) -> None:
    told, _ = made(tmp_path, uid, apt_get=INSTALLS, sudo=sudo)
    assert told.startswith("PostgreSQL was installed (apt-get install postgresql)")
    assert ((tmp_path / "postgresql" / "asked").exists()) == (uid != 0)


@pytest.mark.parametrize(
    ("uid", "stand_ins", "why"),
    [
        (0, {}, "there is no apt-get"),
        (1000, {"apt_get": INSTALLS}, "it takes root"),
        (1000, {"apt_get": INSTALLS, "sudo": WITHOUT}, "it takes root"),
        (0, {"apt_get": WITHOUT_NETWORK}, "apt-get could not install it"),
        (0, {"apt_get": "exit 0"}, "apt-get could not install it"),
    ],
)
def test_where_it_may_not_the_remedy_is_said(uid: int, stand_ins: dict[str, str], why: str, tmp_path: Path) -> None:
    _, told = made(tmp_path, uid, **stand_ins)
    assert told.startswith("PostgreSQL is not here, and its tests are skipped: ")
    assert why in told
    assert "apt install postgresql" in told
