"""Write the figures of benchmarks/results/*.json into README.md and docs/: run this file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness import read
from tables.compression import codec, huge, whole_path
from tables.headline import headline
from tables.inference import inference
from tables.onnx import onnx_consumers, onnx_forms, onnx_large
from tables.posttraining import posttraining
from tables.quantizers import quantizers
from tables.reliability import reliability
from tables.retraining import retraining

ROOT = Path(__file__).parents[1]


def compression() -> list[str]:
    """Tables of networks as they are."""
    lines = [*whole_path(read("whole_path")), ""]
    if (measured := read("codec")).get("networks"):
        lines += [*codec(measured), ""]
    if measured := read("huge"):
        lines += [huge(measured), ""]
    return lines[:-1]


def _of(name: str, table: Callable[[dict], list[str]], key: str | None = None) -> Callable[[], list[str]]:
    """A table of one file of results, left as it is where nothing was measured."""

    def lines() -> list[str]:
        measured = read(name)
        return table(measured) if (measured.get(key) if key else measured) else []

    return lines


BLOCKS: dict[str, dict[str, Callable[[], list[str]]]] = {
    "README.md": {
        "headline": lambda: headline(read),
        "reliability": lambda: reliability(read("fuzz"), read("reading")),
        "consumers": _of("onnx_consumers", onnx_consumers),
        "retraining": _of("papers", retraining, "rows"),
    },
    "docs/compression.md": {"compression": compression},
    "docs/post-training.md": {"posttraining": _of("posttraining", posttraining, "networks")},
    "docs/quantizers.md": {"quantizers": _of("quantizers", quantizers)},
    "docs/inference.md": {"inference": _of("inference", inference, "rows")},
    "docs/onnx.md": {
        "onnx": _of("onnx_models", onnx_forms),
        "large": _of("onnx_large", onnx_large, "steps"),
    },
}
"""Pages, and their blocks between ``<!-- name: start -->`` and ``<!-- name: stop -->``."""


def replaced(text: str, name: str, lines: list[str]) -> str:
    """Put lines between the marks of a block.

    Raises
    ------
    ValueError
        If the text does not have both marks once.
    """
    start, stop = f"<!-- {name}: start -->", f"<!-- {name}: stop -->"
    if text.count(start) != 1 or text.count(stop) != 1:
        raise ValueError(f"needs {start} and {stop} once each")
    head, _, rest = text.partition(start)
    _, _, tail = rest.partition(stop)
    return "\n".join([f"{head}{start}", *lines, f"{stop}{tail}"])


def main() -> None:
    """Replace the blocks of all pages."""
    for page, blocks in BLOCKS.items():
        path = ROOT / page
        text = path.read_text()
        for name, made in blocks.items():
            if lines := made():
                text = replaced(text, name, lines)
        path.write_text(text)


if __name__ == "__main__":
    main()
