import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("optuna")

import nqconvert  # noqa: E402
from nqconvert import tuning  # noqa: E402
from nqconvert.tuning import Trial, TuningResult, tune  # noqa: E402
from nqformat.errors import ConversionError  # noqa: E402

from .conftest import LOSS, Shuffled, network, problem  # noqa: E402


def training(**more):
    return nqconvert.Training(loader=Shuffled(), loss=LOSS, method="surgery", **more)


def evaluate(run):
    inputs, targets = problem(64, seed=5)
    return (run({"input": inputs.numpy()})[0].argmax(1) == targets.numpy()).astype(float)


def test_the_search_finds_the_smallest_file_within_the_bound_and_logs_all(monkeypatch, tmp_path):
    def fake(model, training, drawn, **arguments):
        if drawn["lr"] > 4e-3:
            raise ConversionError("training diverged")
        return round(10_000 * drawn["density"]), 0.05 / drawn["density"] - 0.5

    monkeypatch.setattr(tuning, "convert_drawn", fake)
    log, heard = tmp_path / "trials.jsonl", []
    result = tune(
        network(), training(), example_inputs=problem()[0], evaluate=evaluate, max_drop=0.0, trials=40,
        log=log, progress=heard.append,
    )  # fmt: skip
    assert result.trials == tuple(heard) and len(heard) == 40
    assert result.best is not None and 1_000 <= result.best.file_bytes < 1_400
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert rows[0]["space"]["density"] == [0.02, 0.3] and rows[0]["method"] == "surgery"
    assert [row["number"] for row in rows[1:]] == list(range(40))
    assert all(row["kept"] == (row["drop"] is not None and row["drop"] <= 0.0) for row in rows[1:])


def test_a_real_trial_retrains_and_converts():
    result = tune(
        network(),
        training(epochs=2),
        example_inputs=problem()[0],
        evaluate=evaluate,
        trials=1,
        max_drop=100.0,
    )
    (trial,) = result.trials
    assert trial.kept and trial.file_bytes > 100 and np.isfinite(trial.drop)
    assert set(trial.settings) == {"lr", "density"}


def test_no_trial_within_the_bound_is_no_best():
    trial = Trial(number=0, settings={}, file_bytes=10, drop=1.0, kept=False)
    assert TuningResult(space={}, trials=(trial,)).best is None


def test_bad_arguments_are_refused():
    given = {"example_inputs": problem()[0], "evaluate": evaluate}
    for bad in ({"trials": 0}, {"max_drop": -1.0}, {"space": {"lr": (1.0, 0.1)}}):
        with pytest.raises(ValueError):
            tune(network(), training(), **given, **bad)
    other = nqconvert.Training(loader=Shuffled(), loss=LOSS, method="magic")
    with pytest.raises(ValueError, match="unknown method"):
        tune(network(), other, **given)


NETS = """
import numpy as np, torch
import nqconvert

def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

def training():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    loss = torch.nn.functional.cross_entropy
    return nqconvert.Training(loader=[(x, torch.arange(32) % 3)], loss=loss, method="surgery", epochs=2)

def validate(run):
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    return (run({"input": x})[0].argmax(1) == 0).astype(float)
"""


def test_the_command_prints_the_best_trial_and_fails_without_one(tmp_path, monkeypatch, capsys):
    from nqconvert.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tuned_nets.py").write_text(NETS)
    words = ["tune", "tuned_nets:make", "--example-input", "shape=1,6", "--train", "tuned_nets:training"]
    words += ["--evaluate", "tuned_nets:validate", "--trials", "1", "--json"]
    assert main([*words, "--max-drop", "100", "--log", "trials.jsonl"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["best"]["file_bytes"] == told["trials"][0]["file_bytes"]
    assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 2

    def fail(*arguments, **more):
        raise ConversionError("no luck")

    monkeypatch.setattr(tuning, "convert_drawn", fail)
    assert main(words) == 1 and json.loads(capsys.readouterr().out)["best"] is None
