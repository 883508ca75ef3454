"""The picture of benchmarks/results/codec.json: size over entropy and decoding speed of every coder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_COLOURS = {
    "nqz size": "tab:blue",
    "nqz speed": "tab:cyan",
    "nqz speed, open": "tab:pink",
    "zstd -1": "tab:orange",
    "zstd -3": "tab:olive",
    "zstd -19": "tab:red",
    "zlib": "tab:brown",
    "constriction": "tab:green",
    "NNCodec": "tab:purple",
}

Points = dict[str, dict[str, tuple[float, float]]]


def draw_codec(results: dict[str, Any], path: Path) -> bool:
    """Draw into an image file; False, with a line, if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: nothing drawn")
        return False
    points = {**_stream_points(results), **_network_points(results)}
    figure = Figure(figsize=(9, 0.32 * len(points) + 1.6), dpi=80)
    left, right = figure.subplots(1, 2, sharey=True)
    for coder, colour in _COLOURS.items():
        found = [(row, *each[coder]) for row, each in enumerate(points.values()) if coder in each]
        rows = [row for row, _, _ in found]
        left.scatter([size for _, size, _ in found], rows, color=colour, s=26, label=coder)
        right.scatter([speed for _, _, speed in found], rows, color=colour, s=26)
    left.axvline(1.0, color="grey", linewidth=0.8)
    left.set_yticks(range(len(points)), list(points))
    left.invert_yaxis()
    left.set_xlim(0.6, 1.6)
    left.set_xlabel("bytes over order-0 entropy")
    right.set_xscale("log")
    right.set_xlabel("Msymbols/s decoded, one core")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.legend(loc="upper center", ncols=len(_COLOURS), fontsize="small", frameon=False, handletextpad=0.1)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.savefig(path)
    return True


def _stream_points(results: dict[str, Any]) -> Points:
    """Synthetic streams: nqz's file beside the peers' bytes."""
    points: Points = {}
    for name, row in results["dense"].items():
        bits, n = row["entropy_bits"], row["n"]
        found = {
            coder: (taken / bits, n / row["seconds"][coder]["median"] / 1e6)
            for coder, taken in row["peer_bits"].items()
        }
        found["nqz speed"] = (row["nqz_bits"] / bits, n / row["seconds"]["nqz symbols"]["median"] / 1e6)
        peer = results.get("nncodec", {}).get(name)
        if peer is not None:
            found["NNCodec"] = (peer["bits"] / bits, 1e3 * peer["gsymbols_per_second"])
        points[name] = found
    return points


def _network_points(results: dict[str, Any]) -> Points:
    return {
        name: {
            coder: (found["over_entropy"], found["decode_msymbols_per_second"])
            for coder, found in row["coders"].items()
        }
        for name, row in results.get("networks", {}).items()
    }
