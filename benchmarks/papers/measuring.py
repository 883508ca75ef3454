"""From a trained network to its file, and from the file to a row of the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nqconvert
from nqconvert.accuracy import Score, drop_between
from nqconvert.memory import PeakMemory
from nqconvert.report import measure_file
from nqconvert.training import save_hashed
from nqruntime import InferenceSession

from .data import Data, as_inputs, errors
from .recipe import Recipe, Work
from .rival import nncodec_rows

_BATCH = 500
_RUNS = 21


def measured_row(
    name: str, recipe: Recipe, data: Data, *, seed: int, folder: Path, telling: Callable[[str], Any]
) -> dict[str, Any]:
    """Train with one seed, write the file, and judge what is read back; the test set is looked at once."""
    title = f"{name}_{seed}"
    dense = recipe.dense(data)
    before = errors(dense, data.test_images, data.test_labels)
    validation_before = errors(dense, data.validation_images, data.validation_labels)
    work = Work(data=data, seed=seed, checkpoint=folder / f"{title}.checkpoint", progress=telling(title))
    started = time.perf_counter()
    with PeakMemory() as memory:
        module = recipe.train(dense, work).to(memory_format=torch.contiguous_format).eval()
    seconds = time.perf_counter() - started
    path = folder / f"{title}.nqz"
    example = as_inputs(data.validation_images[:64])
    if work.hashed:
        save_hashed(module, work.hashed[-1], path, example_inputs=example)
    else:
        nqconvert.convert(module, path, example_inputs=example, preset="lossless", seed=seed)
    file = measure_file(path)
    after = file_errors(path, data.test_images, data.test_labels)
    drop = drop_between(_score(before), _score(after))
    rival = {} if recipe.rival is None else {"nncodec": _rival_rows(recipe, work)}
    return {
        **rival,
        "seed": seed,
        "fp32_bytes": recipe.fp32_bytes,
        "file_bytes": path.stat().st_size,
        "payload_bytes": round(sum(tensor.stored_bytes for tensor in file.tensors)),
        "graph_bytes": file.graph,
        "n_nonzero": sum(int((value != 0).sum()) for value in module.parameters()),
        "validation_percent_before": 100 * float(validation_before.mean()),
        "validation_percent": 100
        * float(file_errors(path, data.validation_images, data.validation_labels).mean()),
        "test_percent_before": 100 * float(before.mean()),
        "test_percent": 100 * float(after.mean()),
        "drop": [drop.points, drop.low, drop.high],
        "seconds": work.facts.pop("seconds", seconds),
        "peak_bytes": memory.peak_bytes,
        "inference_ms": _milliseconds(path, data),
        "facts": work.facts,
    }


def _rival_rows(recipe: Recipe, work: Work) -> list[dict[str, Any]]:
    assert recipe.rival is not None
    own = replace(work, checkpoint=work.checkpoint.with_suffix(".rival"), facts={}, hashed=[])
    return nncodec_rows(recipe.rival(recipe.dense(work.data), own).eval(), work.data)


def file_errors(path: Path, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Whether a .nqz file classifies each image, or place of a text, wrongly."""
    session = InferenceSession(path)
    feed = session.get_inputs()[0].name
    parts = [session.run(None, {feed: as_inputs(part).numpy()})[0] for part in images.split(_BATCH)]
    wrong: np.ndarray = np.concatenate(parts).argmax(1) != labels.numpy()
    return wrong


def _score(wrong: np.ndarray) -> Score:
    return Score(mean=1.0 - float(wrong.mean()), samples=1.0 - wrong.reshape(len(wrong), -1).mean(1))


def _milliseconds(path: Path, data: Data) -> float:
    """Median time of one image, recording or text."""
    session = InferenceSession(path)
    feeds = {session.get_inputs()[0].name: as_inputs(data.validation_images[:1]).numpy()}
    taken = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        session.run(None, feeds)
        taken.append(time.perf_counter() - started)
    return 1e3 * statistics.median(taken)
