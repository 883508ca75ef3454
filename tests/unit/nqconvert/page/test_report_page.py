import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

import nqformat
from nqconvert.cli import main
from nqconvert.page.tensor_facts import tensor_facts
from nqformat.accounting import account

EVIL = "<script>alert('x')</script>"


class Texts(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    weight = np.where(rng.random((40, 30)) < 0.1, rng.integers(1, 8, (40, 30)) / 8, 0).astype(np.float32)
    tensors = {EVIL: weight, "bias": np.arange(-3, 3, dtype=np.float32), "n": np.int64([7])}
    path = tmp_path / "m.nqz"
    nqformat.save_file(tensors, path, metadata={"note": f"</pre>{EVIL}"})
    return path, tensors


def facts(path, original):
    with nqformat.safe_open(path, bfloat16="float32") as file:
        accounts = {tensor.name: tensor for tensor in account(file).tensors}
        return {row.bytes.name: row for row in tensor_facts(file, accounts, original)}


def test_facts_are_those_of_the_arrays(model):
    path, tensors = model
    changed = {**tensors, "bias": tensors["bias"] + np.float32(0.1)}
    found = facts(path, changed)
    weight = tensors[EVIL]
    assert found[EVIL].n_nonzero == np.count_nonzero(weight) == sum(found[EVIL].counts)
    assert found[EVIL].low == weight[weight != 0].min() and found[EVIL].high == weight.max()
    assert found[EVIL].density == pytest.approx((weight != 0).mean())
    assert found[EVIL].snr_db == math.inf
    error = 10 * math.log10((changed["bias"] ** 2).sum() / (0.1**2 * 6))
    assert found["bias"].snr_db == pytest.approx(error, abs=1e-4)


def test_what_the_original_does_not_have_is_not_compared(model):
    path, tensors = model
    found = facts(path, {"bias": np.zeros(3, np.float32), "other": tensors["bias"]})
    assert all(row.snr_db is None for row in found.values())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((0, 4), np.float32),
        np.float32([np.nan, np.inf, 1, 2]),
        np.float64(3.5),
        np.array([True, False]),
        np.full(5, 2, np.uint8),
        np.float32([1e38, -1e38]),
    ],
)
def test_awkward_values_have_a_page(tmp_path, array):
    path = tmp_path / "a.nqz"
    nqformat.save_file({"a": np.asarray(array)}, path)
    row = facts(path, {"a": np.asarray(array)})["a"]
    assert row.n_nonzero == np.count_nonzero(array) and row.shape == np.shape(array)
    assert row.snr_db == math.inf
    assert main(["report", str(path), "--quiet"]) == 0
    assert "a.nqz" in (tmp_path / "a.html").read_text()


def test_names_and_metadata_are_text_on_the_page(model, capsys):
    path, tensors = model
    assert main(["report", str(path), "--original", str(path)]) == 0
    assert "3 tensors, 3 compared" in capsys.readouterr().out
    page = Texts(path.with_suffix(".html").read_text())
    assert "script" not in page.tags and page.tags.count("pre") == 1
    assert EVIL in page.texts and "equal" in page.texts and "40 x 30 float32" in page.texts
    assert json.loads(page.texts[page.texts.index("Metadata") + 2]) == {"note": f"</pre>{EVIL}"}
    assert page.tags.count("svg") == len(tensors)


def test_the_command_prints_json_and_writes_where_it_is_told(model, tmp_path, capsys):
    path, _ = model
    target = tmp_path / "page.html"
    assert main(["report", str(path), "-o", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["page_bytes"] == target.stat().st_size and told["n_tensors"] == 3 and told["n_compared"] == 0
    assert not path.with_suffix(".html").exists()


def test_the_file_itself_is_never_overwritten(model, capsys):
    path, _ = model
    before = path.read_bytes()
    assert main(["report", str(path), "-o", str(path)]) == 2
    assert "another name" in capsys.readouterr().err and path.read_bytes() == before


def test_a_damaged_file_leaves_no_page(model, capsys):
    path, _ = model
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    assert main(["report", str(path)]) == 3
    assert not path.with_suffix(".html").exists()
    assert main(["report", str(path.with_name("none.nqz"))]) == 1
