"""Every quantizer on the same network, the same pruning mask and the same bounds."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nqformat.errors import ConversionError, MissingDependencyError

from .baselines import BASELINES, Baseline, baseline_file
from .comparison_row import ComparisonRow
from .comparison_table import Comparison
from .encoding import Encoding
from .memory import PeakMemory
from .network import load_network, network_calibration, network_sensitivities, network_surgeon
from .nncodec import NNCODEC_QPS, nncodec_file, nncodec_missing
from .presets import ConvertSettings
from .quantizers import quantizer_names
from .search import Target, byte_count
from .sensitivity.calibration import calibration_batches, feeds_of
from .sources import ModelSource, Runner
from .sources.batch_axis import declared_samples
from .verification import file_runner

__all__ = ["Comparison", "ComparisonRow", "compare", "parse_target", "wilson_interval"]

_NORMAL_95 = 1.959963984540054


def compare(
    model: Any,
    *,
    example_inputs: Any = None,
    weights: Any = None,
    methods: Sequence[str] | str = "all",
    targets: Sequence[str | float | Target] = (3.0, 4.0, 5.0),
    test: tuple[Any, Any] | None = None,
    calibration: Any = None,
    loss: Callable[[Any, Any], Any] | None = None,
    optimizer_state: Any = None,
    sensitivity: str = "auto",
    samples: int = 1000,
    sensitivity_power: float = 1.0,
    scope: str = "global",
    density: float | None = None,
    baselines: bool = True,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare quantizers on one network: whole-file bytes against accuracy.

    The network is loaded, pruned and measured once; every method then gets the same tensors and
    sensitivities and the same bounds, and every file is read back and run.

    Parameters
    ----------
    model, example_inputs, weights, calibration, loss, optimizer_state
        As in :func:`nqconvert.convert`.
    methods : sequence of str or "all"
        Names of quantizers; ``all`` are all lossy ones, ``obs`` only with calibration data.
    targets : sequence of str, float or Target
        Bounds on the file: ``"3bits"`` (for each value of the model; so is a number), ``"20kB"``, ``"40x"``.
    test : (inputs, labels), optional
        For the accuracy.
    sensitivity : str
        As in :class:`~nqconvert.presets.ConvertSettings`; used by the methods that weight errors.
    samples : int
    sensitivity_power : float
        As in :class:`~nqconvert.presets.ConvertSettings`.
    scope : {"global", "layer"}
    density : float, optional
        Share of weights that magnitude pruning keeps, without retraining.
    baselines : bool
        Whether to add int8 and int4 per channel with zstd and lzma, and NNCodec, where they are installed.
    batch_size : int
        Test samples in a run.
    seed : int
    progress : callable, optional
        Called with a line for each step.

    Returns
    -------
    Comparison

    Raises
    ------
    As :func:`nqconvert.convert`; a bound that one method misses is a row with a note.
    """
    say = progress or (lambda line: None)
    bounds = [parse_target(target) for target in targets]
    names = _method_names(methods)
    settings = ConvertSettings(
        preset="",
        scope=scope,
        clusters=256,
        smaller_of_lossless=False,
        density=density,
        sensitivity=sensitivity,
        samples=samples,
        sensitivity_power=sensitivity_power,
        seed=seed,
    )
    network = load_network(model, settings, example_inputs=example_inputs, weights=weights, progress=say)
    measured = network_calibration(network, calibration, samples)
    sensitivities, notes = network_sensitivities(
        measured.network(network),
        settings,
        calibration=measured.calibration,
        loss=loss,
        optimizer_state=optimizer_state,
        progress=say,
    )
    source = network.pruned(density)
    judge = _Judge(source, network.run, test, declared_samples(source) or batch_size)
    if calibration is None or source.graph is None:
        names = [name for name in names if name != "obs" or "obs" in methods]
    wanted = replace(settings, method="obs" if "obs" in names else settings.method)
    surgeon = network_surgeon(measured.source(source), wanted, measured.calibration, say)
    encoding = Encoding(source=source, sensitivities=sensitivities, surgeon=surgeon)
    rows = [judge.original()]
    if density is not None:
        rows.append(_lossless_row("pruned", encoding, settings, judge))
    for method in names:
        for label, target in bounds:
            say(f"comparing: {method} at {label}")
            rows.append(_quantized_row(replace(settings, method=method), label, target, encoding, judge))
    for baseline in BASELINES if baselines else ():
        say(f"comparing: {baseline.name}")
        rows.append(_baseline_row(baseline, source, judge))
    missing = nncodec_missing() if baselines else ""
    for qp in NNCODEC_QPS if baselines and not missing else ():
        say(f"comparing: nncodec at qp {qp}")
        rows.append(_nncodec_row(qp, source, judge))
    return Comparison(
        rows=tuple(rows),
        original_bytes=sum(array.nbytes for array in source.tensors.values()),
        n_values=sum(array.size for array in source.tensors.values()),
        n_test=judge.n_samples,
        notes=(*source.notes, *notes, *([missing] if missing else [])),
    )


def parse_target(target: str | float | Target) -> tuple[str, Target]:
    """Return a label and the bound that a target stands for.

    Raises
    ------
    ValueError
        If the text is no target.

    Examples
    --------
    >>> parse_target("40x")[1].ratio, parse_target("20kB")[1].size, parse_target(3)[0]
    (40.0, 20000, '3bits')
    """
    if isinstance(target, Target):
        return str(target), target
    if not isinstance(target, str):
        return f"{target:g}bits", Target(bits=float(target))
    text = target.strip()
    try:
        if text.endswith("bits") or text.endswith("bit"):
            return text, Target(bits=float(text.removesuffix("s").removesuffix("bit")))
        if text.endswith("x"):
            return text, Target(ratio=float(text.removesuffix("x")))
        return text, Target(size=byte_count(text))
    except ValueError:
        raise ValueError(f"{target!r} is no target such as 3bits, 20kB or 40x") from None


def wilson_interval(n_right: int, n_samples: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share.

    Source : Wilson 1927, "Probable inference, the law of succession, and statistical inference"

    Examples
    --------
    >>> [round(end, 3) for end in wilson_interval(90, 100)]
    [0.826, 0.945]
    """
    share, z2 = n_right / n_samples, _NORMAL_95**2
    middle = share + z2 / (2 * n_samples)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / n_samples + z2 / (4 * n_samples**2))
    scale = 1 + z2 / n_samples
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def _method_names(methods: Sequence[str] | str) -> list[str]:
    known = [name for name in quantizer_names() if name != "none"]
    if methods == "all":
        return known
    names = [methods] if isinstance(methods, str) else list(methods)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown quantizer {name!r}; known: {', '.join(known)}")
    return names


class _Judge:
    """Counts right answers of files on the test samples."""

    def __init__(
        self, source: ModelSource, run: Runner | None, test: tuple[Any, Any] | None, batch_size: int
    ) -> None:
        if test is not None and (source.graph is None or run is None):
            raise ConversionError("a test needs a model that can run; a state dict has no graph")
        self._source = source
        self._run = run
        self._test = test
        self._batch_size = batch_size
        self._reference: np.ndarray | None = None
        self.n_samples = 0

    def original(self) -> ComparisonRow:
        """Judge the original; later rows are paired with it."""
        row = ComparisonRow(
            method="original", file_bytes=sum(array.nbytes for array in self._source.tensors.values())
        )
        if self._test is None or self._run is None:
            return row
        self._reference = self._right(self._run)
        self.n_samples = self._reference.size
        return self._with_accuracy(row, self._reference)

    def file(self, row: ComparisonRow, content: bytes) -> ComparisonRow:
        """Read a file back, run it and add its accuracy to the row."""
        if self._test is None:
            return row
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.nqz"
            path.write_bytes(content)
            right = self._right(file_runner(path))
        return self._with_accuracy(row, right)

    def _right(self, run: Runner) -> np.ndarray:
        found = []
        for batch in calibration_batches(self._test, batch_size=self._batch_size, samples=1 << 62):
            outputs = run(feeds_of(batch, self._source.input_names))
            scores = next(output for output in outputs if output.dtype.kind == "f")
            found.append((scores.argmax(axis=-1) == np.asarray(batch.targets)).reshape(-1))
        right: np.ndarray = np.concatenate(found)
        return right

    def _with_accuracy(self, row: ComparisonRow, right: np.ndarray) -> ComparisonRow:
        assert self._reference is not None
        low, high = wilson_interval(int(right.sum()), right.size)
        return replace(
            row,
            accuracy=float(right.mean()),
            low=low,
            high=high,
            lost=int((self._reference & ~right).sum()),
            won=int((~self._reference & right).sum()),
        )


def _lossless_row(label: str, encoding: Encoding, base: ConvertSettings, judge: _Judge) -> ComparisonRow:
    settings = replace(base, method="none")
    with _Costs() as costs:
        content = encoding.content(settings, encoding.quantize(settings))
    return judge.file(costs.on(ComparisonRow(method=label, file_bytes=len(content))), content)


def _quantized_row(
    settings: ConvertSettings, label: str, target: Target, encoding: Encoding, judge: _Judge
) -> ComparisonRow:
    bound = encoding.max_bytes(target)
    assert bound is not None
    row = ComparisonRow(method=settings.method, target=label)
    costs = _Costs()
    try:
        with costs:
            found = encoding.fitting_attempt(settings, bound, lambda line: None)
    except ConversionError as error:
        return costs.on(replace(row, note=str(error).partition(";")[0]))
    row = replace(row, file_bytes=found.file_bytes, setting=_setting(found.settings))
    return judge.file(costs.on(row), encoding.content(found.settings, found.model))


def _setting(settings: ConvertSettings) -> str:
    if settings.step is not None:
        return f"step {settings.step:.4g}"
    if settings.rate_penalty is not None:
        return f"rate penalty {settings.rate_penalty:.3g}"
    return f"{settings.clusters} clusters"


def _baseline_row(baseline: Baseline, source: ModelSource, judge: _Judge) -> ComparisonRow:
    row = ComparisonRow(method=baseline.name)
    try:
        with _Costs() as costs:
            n_bytes, tensors = baseline_file(baseline, source)
    except MissingDependencyError as error:
        return replace(row, note=str(error))
    return _judged_tensors(costs.on(replace(row, file_bytes=n_bytes)), tensors, source, judge)


def _nncodec_row(qp: int, source: ModelSource, judge: _Judge) -> ComparisonRow:
    with _Costs() as costs:
        n_bytes, tensors = nncodec_file(source, qp)
    row = ComparisonRow(method="nncodec", file_bytes=n_bytes, setting=f"qp {qp}")
    return _judged_tensors(costs.on(row), tensors, source, judge)


def _judged_tensors(
    row: ComparisonRow, tensors: Mapping[str, np.ndarray], source: ModelSource, judge: _Judge
) -> ComparisonRow:
    """Run a file of exactly these tensors."""
    encoding = Encoding(source=replace(source, tensors=dict(tensors)))
    settings = ConvertSettings(method="none")
    return judge.file(row, encoding.content(settings, encoding.quantize(settings)))


class _Costs:
    """Seconds and peak memory of the work in a block."""

    def __init__(self) -> None:
        self._memory = PeakMemory()
        self._started = self._seconds = 0.0

    def __enter__(self) -> _Costs:
        self._memory.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: Any) -> None:
        self._seconds = time.perf_counter() - self._started
        self._memory.__exit__(*error)

    def on(self, row: ComparisonRow) -> ComparisonRow:
        """Return the row with its costs."""
        return replace(row, seconds=self._seconds, peak_bytes=self._memory.peak_bytes)
