"""Write the conformance files from their descriptions.

Run ``PYTHONPATH=.:spec python spec/vectors/make_vectors.py`` in the project's folder. Files of a released
format version are never written again; this script only adds what is missing. New descriptions go to the
end of the last table, so that numbers stay. README.md and the two expected.json are written from the
descriptions and from what the reference reader says.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import reference_reader
from vector_assembly import Described
from vector_cases import CASE_FILES
from vector_faults import CONTAINER_FAULTS, Fault
from vector_files import WRITTEN_FILES
from vector_matrix import MATRIX_FILES
from vector_number_faults import NUMBER_FAULTS
from vector_tensor_faults import TENSOR_FAULTS

FOLDER = Path(__file__).parent
HEAD = """# Conformance files

Files of `valid/` must be read; `valid/expected.json` gives for each the metadata, the CRC-32 of the
plain graph (or null), and type, dims and CRC-32 of the little-endian bytes of each tensor. Files of
`invalid/` have one fault or one item of a later version each: what is named (`file`, `graph`, `metadata`
or a tensor) must be refused with the error class named, and everything else must be read. Section
numbers are those of `../nqz.md`.

`PYTHONPATH=.:spec python spec/vectors/make_vectors.py`, run in the project's folder, writes what is
missing, and this page.

The files of 1.0 are frozen in `tests/compat/v1.0`, which every later reader must read; those of a later
version are added by one command, here for 1.1:

```
mkdir -p tests/compat/v1.1 && cp -r spec/vectors/valid spec/vectors/invalid tests/compat/v1.1/
```"""


def numbered(described: dict[str, Any]) -> dict[str, Any]:
    """Put numbers before names."""
    return {f"{i:03d}-{name}": each for i, (name, each) in enumerate(described.items(), 1)}


VALID: dict[str, Described] = numbered(WRITTEN_FILES | MATRIX_FILES | CASE_FILES)
INVALID: dict[str, Fault] = numbered(CONTAINER_FAULTS | NUMBER_FAULTS | TENSOR_FAULTS)


def contents(path: Path) -> dict[str, Any]:
    """Return what a valid file holds: type, dims and CRC-32 of each tensor, metadata, CRC-32 of the graph."""
    file = reference_reader.read(path)
    tensors = {
        name: [str(array.dtype), list(array.shape), f"{zlib.crc32(array.tobytes()):08x}"]
        for name, array in file.tensors.items()
    }
    graph = None if file.graph is None else f"{zlib.crc32(file.graph):08x}"
    return {"tensors": tensors, "metadata": file.metadata, "graph": graph}


def readme() -> str:
    """Return README.md."""
    lines = [HEAD, "", "## Valid files", ""]
    lines += ["| file | tests | section |", "|---|---|---|"]
    lines += [f"| `valid/{name}.nqz` | {each.tests} | {each.section} |" for name, each in VALID.items()]
    lines += ["", "## Invalid files", "", "| file | fault | error | of | section |", "|---|---|---|---|---|"]
    for name, fault in INVALID.items():
        concerns = ", ".join(fault.concerns)
        lines.append(
            f"| `invalid/{name}.nqz` | {fault.tests} | {fault.error} | {concerns} | {fault.section} |"
        )
    return "\n".join(lines) + "\n"


def write_json(path: Path, expected: dict[str, Any]) -> None:
    """Write an expected.json with a line for each file."""
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in expected.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    """Write the files that do not exist yet, and what is expected of all."""
    for folder, described in (("valid", VALID), ("invalid", INVALID)):
        (FOLDER / folder).mkdir(exist_ok=True)
        for name, each in described.items():
            path = FOLDER / folder / f"{name}.nqz"
            if not path.exists():
                path.write_bytes(each.make())
                print(f"wrote {folder}/{path.name}")
    write_json(
        FOLDER / "valid" / "expected.json", {n: contents(FOLDER / "valid" / f"{n}.nqz") for n in VALID}
    )
    write_json(
        FOLDER / "invalid" / "expected.json",
        {name: {"error": fault.error, "of": list(fault.concerns)} for name, fault in INVALID.items()},
    )
    (FOLDER / "README.md").write_text(readme())


if __name__ == "__main__":
    main()
