"""Write the conformance files from their descriptions: ``python spec/vectors/make_vectors.py``.

Files of a released format version are never written again; this script only adds what is missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import nqformat
from nqformat import Codebook, CodebookTensor, DType

FOLDER = Path(__file__).parent


def worked_example() -> bytes:
    """Return the file of spec section 12."""
    steps = [3, 9, 5, 14, 8, 3, 21, 6, 4, 9]
    levels = [1, 1, 2, 1, 3, 1, 2, 1]
    indices = np.zeros(640, dtype=np.uint8)
    position = steps[0]
    count = 0
    while position < indices.size:
        indices[position] = levels[count % 8]
        count += 1
        position += steps[count % 10] + (count * 7) % 5
    book = Codebook(values=np.array([0, 0.5, -1.5, 2.25], dtype=np.float32), stored_as=DType.FLOAT16)
    tensors = {
        "fc.weight": CodebookTensor(indices=indices.reshape(16, 40), codebook=book),
        "fc.bias": np.array([0.25, -1, 2, 0.5], dtype=np.float32),
    }
    return nqformat.save(tensors, metadata={"method": "kmeans"}, edge=True)


VALID = {"001-worked-example": worked_example}


def main() -> None:
    """Write the files that do not exist yet."""
    for name, make in VALID.items():
        path = FOLDER / "valid" / f"{name}.nqz"
        if not path.exists():
            path.write_bytes(make())
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
