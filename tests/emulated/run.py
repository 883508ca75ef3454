"""Read and write on an emulated big-endian machine (s390x) what is read and written here, and compare.

``make test-big-endian`` runs it. It needs a Debian system with ``qemu-user-static``; Python and NumPy for
s390x are fetched with ``apt-get`` and unpacked in ``.emulated``, nothing is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".emulated"
CONTENTS = Path(__file__).with_name("contents.py")
PACKAGES = ["python3-minimal", "libpython3.11-stdlib", "python3-numpy"]


def run(*command: str | Path, **environment: str) -> str:
    """Run a command and return what it prints; its errors go to the terminal."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout


def unpack_machine() -> None:
    """Fetch and unpack Python and NumPy for s390x."""
    for part in ("state/lists/partial", "cache/archives/partial", "root"):
        (FOLDER / part).mkdir(parents=True, exist_ok=True)
    (FOLDER / "status").touch()
    options = ["APT::Architecture=s390x", "APT::Architectures=s390x", f"Dir::State={FOLDER / 'state'}"]
    options += [f"Dir::State::status={FOLDER / 'status'}", f"Dir::Cache={FOLDER / 'cache'}"]
    apt = ["apt-get", "-q", *(text for option in options for text in ("-o", option))]
    run(*apt, "update")
    run(*apt, "install", "--yes", "--no-install-recommends", "--download-only", *PACKAGES)
    for package in sorted((FOLDER / "cache" / "archives").glob("*.deb")):
        run("dpkg-deb", "-x", package, FOLDER / "root")


def emulated() -> dict[str, Any]:
    """Return what the emulated machine says."""
    machine = FOLDER / "root" / "usr"
    libraries = machine / "lib" / "s390x-linux-gnu"
    settings = {
        "LD_LIBRARY_PATH": ":".join(str(libraries / part) for part in ("", "blas", "lapack")),
        "PYTHONHOME": str(machine),
        "PYTHONPATH": f"{ROOT}:{machine / 'lib' / 'python3' / 'dist-packages'}",
    }
    given = [text for name, value in settings.items() for text in ("-E", f"{name}={value}")]
    python = machine / "bin" / "python3.11"
    said: dict[str, Any] = json.loads(
        run("qemu-s390x-static", "-L", FOLDER / "root", *given, python, CONTENTS)
    )
    return said


def main() -> int:
    """Compare both machines; return the exit code."""
    if shutil.which("qemu-s390x-static") is None or shutil.which("apt-get") is None:
        sys.exit("qemu-s390x-static and apt-get are needed: on Debian, apt-get install qemu-user-static")
    if not (FOLDER / "root" / "usr" / "bin" / "python3.11").exists():
        unpack_machine()
    here = json.loads(run(sys.executable, CONTENTS, PYTHONPATH=str(ROOT)))
    there = emulated()
    differing = [
        f"{kind} {name}" for kind in here for name in here[kind] if here[kind][name] != there[kind].get(name)
    ]
    n_tensors = sum(map(len, here["read"].values()))
    print(
        f"s390x, big-endian: {len(here['written'])} files written, {len(here['read'])} files and "
        f"{n_tensors} tensors or refusals read, {len(differing)} differ"
    )
    print("\n".join(differing[:20]))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
