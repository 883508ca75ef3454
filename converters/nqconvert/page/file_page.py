"""The page itself: HTML with its pictures inside, which any browser shows without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from nqconvert.report import bit_cells
from nqformat.accounting import FileBytes
from nqformat.tensor import Layout

from .tensor_facts import TensorFacts

__all__ = ["file_page"]

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --mark: #3a7bd5; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; }
dt { opacity: .7; }
dd { margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; }
th { background: Canvas; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 9rem; font-family: ui-monospace, monospace; font-size: .85em; }
.bar { display: flex; height: 1.6rem; border: 1px solid var(--line); }
.bar span { display: block; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.scroll { overflow-x: auto; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .6rem; }
svg { display: block; fill: var(--mark); }
"""
_COLOURS = ("#3a7bd5", "#e08a3c", "#5aa469", "#b65fcf", "#c94f4f", "#8a8f98", "#c7b446", "#4fb3bf", "#8d6e63")
_WIDTH, _HEIGHT = 144, 26
_MOST_PARTS = 6


def file_page(
    title: str, version: str, file: FileBytes, metadata: Mapping[str, Any], tensors: Iterable[TensorFacts]
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    title : str
    version : str
        Of the format.
    file : FileBytes
    metadata : mapping
    tensors : iterable of TensorFacts
        In the order of the table.
    """
    rows = list(tensors)
    compared = any(row.snr_db is not None for row in rows)
    parts = [
        f"<h1>{escape(title)}</h1>",
        _summary(version, file, rows),
        "<h2>Where the bytes go</h2>",
        _shares(file),
        "<h2>Tensors</h2>",
        f'<div class="scroll">{_table(rows, compared)}</div>',
        "<h2>Metadata</h2>",
        f"<pre>{escape(json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False))}</pre>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(version: str, file: FileBytes, rows: Sequence[TensorFacts]) -> str:
    own = [row for row in rows if row.bytes.layout is not Layout.VIEW]
    plain = sum(row.bytes.plain_bytes for row in own)
    n_elements = sum(row.bytes.n_elements for row in own)
    facts = [("file", f"{file.file_bytes:,} bytes, format {version}")]
    if plain:
        facts.append(("decoded", f"{plain:,} bytes: {plain / file.file_bytes:.1f} times as many"))
    if n_elements:
        n_nonzero = sum(row.n_nonzero for row in own)
        facts += [
            ("numbers", f"{n_elements:,} in {len(own)} tensors"),
            ("not zero", f"{n_nonzero:,}, {100 * n_nonzero / n_elements:.1f} %"),
            ("bits a number", f"{8 * file.file_bytes / n_elements:.3f} of the whole file"),
        ]
    compared = [row for row in own if row.snr_db is not None]
    if compared:
        n_equal = sum(row.snr_db == math.inf for row in compared)
        facts.append(("original", f"{n_equal} of {len(compared)} compared tensors are equal to it"))
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _shares(file: FileBytes) -> str:
    """Return a bar of the largest tensors, the graph and the rest, and what its parts are."""
    largest = sorted(file.tensors, key=lambda tensor: -tensor.stored_bytes)[:_MOST_PARTS]
    parts = [(tensor.name, tensor.stored_bytes) for tensor in largest if tensor.stored_bytes >= 1]
    others = sum(tensor.stored_bytes for tensor in file.tensors) - sum(size for _, size in parts)
    n_others = len(file.tensors) - len(parts)
    if n_others and others >= 1:
        parts.append((f"{n_others} other tensors", others))
    rest = file.overhead - file.graph
    parts += [(name, size) for name, size in (("graph", file.graph), ("header, tables", rest)) if size]
    colours = [_COLOURS[i % len(_COLOURS)] for i in range(len(parts))]
    bar = "".join(
        f'<span style="width:{100 * size / file.file_bytes:.3f}%;background:{colour}" '
        f'title="{escape(name)}: {size:,.0f} bytes"></span>'
        for (name, size), colour in zip(parts, colours, strict=True)
    )
    lines = "".join(
        f'<tr><td class="name"><span class="key" style="background:{colour}"></span>{escape(name)}</td>'
        f'<td class="n">{size:,.0f}</td><td class="n">{100 * size / file.file_bytes:.1f} %</td></tr>'
        for (name, size), colour in zip(parts, colours, strict=True)
    )
    return f'<div class="bar">{bar}</div><table><tbody>{lines}</tbody></table>'


def _table(rows: Sequence[TensorFacts], compared: bool) -> str:
    titles = [
        ("tensor", ""),
        ("shape", ""),
        ("stored as", ""),
        ("bytes decoded", "n"),
        ("stored", "n"),
        ("bits a number", "n"),
        ("entropy", "n"),
        ("not zero", "n"),
        *([("SNR to the original", "n")] if compared else []),
        ("values besides zero", ""),
    ]
    head = "".join(f'<th class="{kind}">{title}</th>' for title, kind in titles)
    body = "".join(f"<tr>{_row(row, compared)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: TensorFacts, compared: bool) -> str:
    account = row.bytes
    layout = "?" if account.layout is None else account.layout.name.lower().replace("_", " ")
    stored_as = f"{layout} of {', '.join(row.sources)}" if row.sources else f"{layout}, {account.codec}"
    cells = [
        ("name", account.name),
        ("", f"{' x '.join(map(str, row.shape)) or 'scalar'} {row.dtype}"),
        ("", stored_as),
        ("n", f"{account.plain_bytes:,}"),
        ("n", f"{account.stored_bytes:,.0f}"),
        *(("n", text) for text in bit_cells(account)),
        ("n", f"{100 * row.density:.1f} %" if account.n_elements else ""),
        *([("n", _decibels(row.snr_db))] if compared else []),
    ]
    written = "".join(f'<td class="{kind}">{escape(text)}</td>' for kind, text in cells)
    return f"{written}<td>{_histogram(row)}</td>"


def _decibels(snr_db: float | None) -> str:
    if snr_db is None:
        return ""
    return "equal" if snr_db == math.inf else f"{snr_db:.1f} dB"


def _histogram(row: TensorFacts) -> str:
    """Draw counts as bars, the highest as high as the picture."""
    if not row.counts:
        return ""
    step, top = _WIDTH / len(row.counts), max(row.counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{_HEIGHT * (1 - count / top):.1f}" width="{step:.1f}" '
        f'height="{_HEIGHT * count / top:.1f}"/>'
        for i, count in enumerate(row.counts)
        if count
    )
    label = f"{row.low:.4g} to {row.high:.4g}"
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img"><title>{label}</title>{bars}</svg>{label}'
