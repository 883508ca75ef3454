import numpy as np
import pytest

import nqformat
from nqconvert import verification
from nqconvert.network import Network
from nqconvert.sources import ModelSource
from nqconvert.verification import verify_file
from nqformat.errors import ConversionError, MissingDependencyError

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
FEEDS = {"x": np.ones((4, 2), np.float32)}


def network(graph=b"graph", **changes):
    def run(feeds):
        return [feeds["x"] @ WEIGHTS]

    source = ModelSource(tensors={"w": WEIGHTS}, graph=graph, run=run, input_names=("x",))
    return Network(source=source, **{"run": run, **changes})


@pytest.fixture
def written(tmp_path, monkeypatch):
    path = tmp_path / "w.nqz"
    nqformat.save_file({"w": WEIGHTS}, path)
    opened = []

    def file_runner(path):
        opened.append(path)
        return lambda feeds: [feeds["x"] @ nqformat.load_file(path)["w"]]

    monkeypatch.setattr(verification, "file_runner", file_runner)
    return path, opened


def test_outputs_and_evaluation_open_the_file_once(written):
    path, opened = written
    found = verify_file(path, network(), FEEDS, lambda run: float(run(FEEDS)[0][0, 0]))
    assert opened == [path]
    assert found.outputs.agreement == 1.0 and found.retrained_outputs is None
    assert found.score.mean == 3.0 and np.isinf(found.weight_snr_db)
    assert found.notes == found.warnings == ()


def test_a_file_that_nothing_runs_is_not_opened(written):
    path, opened = written
    assert "no example inputs" in verify_file(path, network(), {}).notes[0]
    assert "no graph" in verify_file(path, network(graph=None, run=None), FEEDS).notes[0]
    assert opened == []


def test_retraining_is_judged_against_the_retrained_network(written):
    path, _ = written
    other = network(run=lambda feeds: [-1000 * (feeds["x"] @ WEIGHTS)], run_retrained=network().run)
    found = verify_file(path, other, FEEDS)
    assert found.retrained_outputs.snr_db == np.inf
    assert [warning.partition(" ")[0] for warning in found.warnings] == ["top-1"]


def test_a_missing_package_is_a_note_unless_an_evaluation_needs_it(written, monkeypatch):
    def missing(path):
        raise MissingDependencyError("onnxruntime", "ort")

    monkeypatch.setattr(verification, "file_runner", missing)
    found = verify_file(written[0], network(), FEEDS)
    assert found.outputs is None and "onnxruntime is not installed" in found.notes[0]
    with pytest.raises(MissingDependencyError):
        verify_file(written[0], network(), FEEDS, lambda run: 1.0)


def test_example_inputs_must_be_as_many_as_the_inputs():
    assert network().feeds(FEEDS["x"])["x"].shape == (4, 2)
    assert network().feeds(None) == {}
    with pytest.raises(ConversionError, match="2 example inputs given, the model takes 1: x"):
        network().feeds([FEEDS["x"], FEEDS["x"]])
