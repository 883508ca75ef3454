"""Blocks of measured figures in README.md and docs/."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pages():
    if not (ROOT / "benchmarks").exists():
        pytest.skip("the benchmarks are not part of an installed package")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import readme_figures

        yield readme_figures
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_lines_between_the_marks_of_a_block_are_replaced(pages) -> None:
    text = "before\n<!-- a: start -->\nold\n<!-- a: stop -->\nafter <!-- b: start --><!-- b: stop -->"
    made = pages.replaced(text, "a", ["new", "lines"])
    assert made == text.replace("old", "new\nlines")
    assert pages.replaced(made, "a", ["old"]) == text


@pytest.mark.parametrize(
    "text",
    ["", "<!-- a: start -->", "<!-- a: stop -->", "<!-- a: start --><!-- a: stop -->" * 2],
    ids=["no marks", "no stop", "no start", "twice"],
)
def test_a_page_without_its_block_is_an_error(pages, text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        pages.replaced(text, "a", ["new"])


def test_every_page_shows_what_the_results_say(pages) -> None:
    for page, blocks in pages.BLOCKS.items():
        text = (ROOT / page).read_text()
        for name, made in blocks.items():
            lines = made()
            assert lines, name
            assert pages.replaced(text, name, lines) == text, f"{page} is not made from the present results"


def test_headline_leaves_out_what_was_not_measured(pages) -> None:
    from tables.headline import headline

    assert len(headline(lambda name: {})) == 2


def test_headline_compares_times_with_onnx_runtime(pages) -> None:
    from tables.headline import headline

    times = {"native": {"best": 0.5}, "ort": {"best": 2.0}}
    found = {"inference": {"rows": {"ResNet-32, 10 %, batch 1": {"1": {"milliseconds": times}}}}}
    (row,) = headline(lambda name: found.get(name, {}))[2:]
    assert "0.5 ms, 4.0 x as fast" in row
    assert "2 ms" in row
