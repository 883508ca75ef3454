"""The picture of benchmarks/results/posttraining.json: accuracy over bytes, one panel a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttraining_goals import before

_METHODS = {
    "obs": ("tab:blue", "o", "obs (.nqz)"),
    "nncodec": ("tab:purple", "x", "NNCodec, four modes"),
    "round": ("tab:orange", "s", "rounding (.nqz)"),
    "int8+zstd": ("tab:red", "^", "int8 + zstd"),
    "int4+zstd": ("tab:brown", "v", "int4 + zstd"),
}
_COLUMNS = 3
_LOST = 0.08


def draw_posttraining(results: dict[str, Any], path: Path) -> bool:
    """Draw into an image file; False, with a line, if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: nothing drawn")
        return False
    networks = results.get("networks", {})
    n_rows = -(-(len(networks) + 1) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 3 * n_rows), dpi=80)
    panels = list(figure.subplots(n_rows, _COLUMNS, squeeze=False).flat)
    for axes, (name, network) in zip(panels, networks.items(), strict=False):
        _draw(axes, name, network)
    for axes in panels[len(networks) :]:
        axes.axis("off")
    if networks:
        handles, labels = panels[0].get_legend_handles_labels()
        panels[len(networks)].legend(handles, labels, loc="center", frameon=False)
    figure.tight_layout()
    figure.savefig(path)
    return True


def _draw(axes: Any, name: str, network: dict[str, Any]) -> None:
    original = 100 * before(network)
    floor = original - 100 * _LOST
    for method, (colour, marker, label) in _METHODS.items():
        points = [
            (r["file_bytes"], 100 * r["test"]) for r in network["rows"].values() if r["method"] == method
        ]
        shown = [point for point in points if point[1] >= floor]
        x, y = zip(*shown, strict=True) if shown else ((), ())
        axes.scatter(x, y, color=colour, marker=marker, s=16, label=label)
    axes.axhline(original, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_title(name, fontsize="medium")
    axes.set_xlabel("bytes")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3, which="both")
