"""Imports only point down, and heavy packages stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = {
    "nqformat": ROOT / "nqformat",
    "nqruntime": ROOT / "runtime" / "nqruntime",
    "nqconvert": ROOT / "converters" / "nqconvert",
}
ALLOWED = {
    "nqformat": {"nqformat"},
    "nqruntime": {"nqformat", "nqruntime"},
    "nqconvert": {"nqformat", "nqruntime", "nqconvert"},
}
FILES = [(package, path) for package, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize(("package", "path"), FILES, ids=[str(p.relative_to(ROOT)) for _, p in FILES])
def test_imports_only_point_down(package: str, path: Path) -> None:
    imports = imported_packages(path)
    assert imports & set(PACKAGES) <= ALLOWED[package]
    assert not imports & {"runtime", "converters"}
    if "kernels" not in path.parts:
        assert "numba" not in imports
    if package != "nqconvert":
        assert not imports & {"torch", "onnx"}


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(' '.join(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    paths = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "converters")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{script}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"numba", "torch", "onnx", "onnxruntime", "llvmlite"}


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_importing_a_package_is_cheap(package: str) -> None:
    assert not modules_after(f"import {package}") & HEAVY


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_inspect_and_verify_load_nothing_heavy(command: str) -> None:
    example = ROOT / "spec" / "vectors" / "valid" / "001-worked-example.nqz"
    code = f"from nqconvert.cli import main\nassert main([{command!r}, {str(example)!r}]) == 0"
    assert not modules_after(code) & HEAVY
