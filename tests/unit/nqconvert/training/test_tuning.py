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
