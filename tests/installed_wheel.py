"""Build the sdist and from it the wheel, install the wheel elsewhere and test it from outside the tree.

Dependencies come from the environment that runs this script; our packages only from the wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUITES = ("unit/nqformat", "unit/nqruntime", "unit/nqconvert/test_quantization.py", "e2e")

CHECK = """
import sys, nqformat, nqruntime, nqconvert
for package in (nqformat, nqruntime, nqconvert):
    assert package.__file__.startswith(sys.prefix), package.__file__
    assert (__import__("pathlib").Path(package.__file__).parent / "py.typed").exists()
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command without this tree on its path; end with its exit code if it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    """Build, install, test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source"
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for entry in filter(None, tracked.decode().split("\0")):
            if (ROOT / entry).exists():
                (source / entry).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / entry, source / entry)
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source, cwd=folder)
        (wheel,) = (folder / "dist").glob("*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "--quiet", "--no-deps", wheel, cwd=folder)
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run(python, "-c", CHECK, cwd=folder)
        run(folder / "venv" / "bin" / "nqz", "--version", cwd=folder)
        shutil.copytree(source / "tests", folder / "tests")
        suites = [folder / "tests" / suite for suite in SUITES]
        options = ["-q", "-n", "2", "--import-mode=importlib", "-m", "not slow"]
        run(python, "-m", "pytest", *options, *suites, cwd=folder)


if __name__ == "__main__":
    main()
