"""Inference sessions with the methods of ONNX Runtime's, straight from a .nqz file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from nqformat import NqzFile, safe_open
from nqformat.errors import (
    ConversionError,
    CorruptError,
    FormatError,
    MissingDependencyError,
    UnsupportedFeatureError,
)
from nqformat.limits import Limits

from .engines.engine import Engine, EngineSettings, KernelChoice
from .graph import Model
from .graph_reader import read_model
from .made_up import made_up_feeds
from .values import ValueDescription, check_feeds, check_output_names, describe, input_checks

if TYPE_CHECKING:
    from .engines.native import Reopen
    from .precision import PrecisionReport

_ENGINES = ("auto", "native", "ort")
_MEMORY = ("default", "low")
_PRECISIONS = ("float32", "int8")
_WORTH_COMPARING = 20_000
_MADE_UP_SAMPLES = 8


class InferenceSession:
    """A network that is ready to run.

    Parameters
    ----------
    path : path-like
        A .nqz file with a graph.
    engine : {"auto", "native", "ort"}
        ``native`` computes from the compressed weights, ``ort`` decodes them for ONNX Runtime, ``auto`` takes
        the one that is faster on this machine: ``ort`` if the native engine lacks an operator, ``native`` for
        graphs of few multiplications, with ``memory="low"`` and without ONNX Runtime, and else what a
        comparison says, which is made once and remembered in the cache folder.
    threads : int, optional
        Threads for one run; by default as many as there are processors.
    memory : {"default", "low"}
        ``low`` lets ONNX Runtime map the decoded weights from a temporary file: no second copy at any time,
        up to a fifth slower. The native engine keeps weights compressed either way.
    limits : Limits, optional
        Bounds on what reading the file may allocate.
    precision : {"float32", "int8"}
        ``int8`` lets products and convolutions round their inputs and weights to 8-bit integers where that is
        faster on this machine: outputs are others, by how much :meth:`precision_report` tells. Always the
        native engine.

    Raises
    ------
    OSError
        If the file cannot be opened.
    FormatError, UnsupportedVersionError
        If it is no readable .nqz file, or its graph is malformed.
    ConversionError
        If the file holds tensors only.
    UnsupportedFeatureError
        If the chosen engine cannot run the graph.
    MissingDependencyError
        If ONNX Runtime is needed and not installed.

    Examples
    --------
    >>> session = InferenceSession("model.nqz")  # doctest: +SKIP
    >>> session.get_inputs()[0].shape  # doctest: +SKIP
    ['batch', 64]
    >>> [logits] = session.run(None, {"input": images})  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        engine: str = "auto",
        threads: int | None = None,
        memory: str = "default",
        limits: Limits | None = None,
        *,
        precision: str = "float32",
    ) -> None:
        _check_choice("engine", engine, _ENGINES)
        _check_choice("memory", memory, _MEMORY)
        _check_choice("precision", precision, _PRECISIONS)
        if precision == "int8" and engine == "ort":
            raise ValueError(
                "precision int8 is the native engine's; engine='ort' computes in the graph's types"
            )
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads must be a positive integer or None, not {threads!r}")
        settings = EngineSettings(
            threads=threads, memory=memory, limits=limits or Limits(), precision=precision
        )
        with safe_open(path, limits=limits, bfloat16="uint16") as file:
            self._tensor_names = tuple(file.keys())
            self._metadata = file.metadata()
            graph_bytes, model = _read_graph(file, path)
            self._checks = input_checks(model.graph)
            given = frozenset(model.graph.initializers)
            self._make_up = partial(made_up_feeds, model.graph.inputs, given)
            self._outputs = [describe(value) for value in model.graph.outputs]
            self._output_names = tuple(value.name for value in self._outputs)
            self._fallback_reason: str | None = None
            self._reopen: Reopen = partial(_reopened, path, limits, file.header.to_bytes())
            self._precision = precision
            self._engine: Engine | None = self._build(engine, graph_bytes, model, file, settings)

    def _build(
        self,
        engine: str,
        graph_bytes: bytes,
        model: Model,
        file: NqzFile,
        settings: EngineSettings,
    ) -> Engine:
        reopen = self._reopen
        if engine == "ort":
            return _build_ort(graph_bytes, model, file, settings, {})
        from .engines.builder import UnsupportedNodesError, multiplications
        from .engines.choice import choice_key
        from .engines.native import NativeEngine

        header = file.header.to_bytes()
        kernels_key = cache(partial(choice_key, header, None))
        try:
            wants_native = engine == "native" or settings.memory == "low" or settings.precision == "int8"
            if wants_native or multiplications(model.graph, file) < _WORTH_COMPARING:
                return NativeEngine(model, file, settings, reopen=reopen, choice_key=kernels_key)
            from .engines.choice import faster

            chosen, self._fallback_reason = faster(
                model,
                choice_key(header, settings),
                lambda: NativeEngine(model, file, settings, reopen=reopen, choice_key=kernels_key),
                lambda: _ort_or_none(graph_bytes, model, file, settings),
            )
            return chosen
        except UnsupportedFeatureError as error:
            if engine == "native" or settings.precision == "int8":
                raise
            self._fallback_reason = str(error)
            reasons = error.reasons if isinstance(error, UnsupportedNodesError) else {}
        try:
            return _build_ort(graph_bytes, model, file, settings, reasons)
        except MissingDependencyError as error:
            error.msg = f"{error.msg}; without it this file cannot run: {self._fallback_reason}"
            raise

    def __enter__(self) -> InferenceSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the weights; a closed session cannot run."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute outputs from inputs; may be called from several threads at once.

        Parameters
        ----------
        output_names : sequence of str or None
            None computes all.
        feeds : mapping of str to ndarray
            A value for each input.

        Returns
        -------
        list of ndarray
            In the order of `output_names`.

        Raises
        ------
        TypeError, ValueError
            If a feed has the wrong name, element type or shape.
        FormatError
            If the graph contradicts itself, or inputs of these shapes.
        """
        wanted = self._output_names
        if output_names is not None:
            wanted = check_output_names(output_names, wanted)
        engine = self._engine or self._open_engine
        return engine.run(wanted, check_feeds(feeds, self._checks))

    @property
    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise ValueError("the session is closed")
        return self._engine

    def get_inputs(self) -> list[ValueDescription]:
        """Describe the inputs that a caller must feed."""
        return [check.description for check in self._checks.values() if check.required]

    def get_outputs(self) -> list[ValueDescription]:
        """Describe the outputs."""
        return list(self._outputs)

    @property
    def engine(self) -> str:
        """Name of the engine that runs: ``native`` or ``ort``."""
        return self._open_engine.name

    @property
    def fallback_reason(self) -> str | None:
        """Why ``auto`` did not take the native engine; None if it did, or was not asked."""
        return self._fallback_reason

    @property
    def weight_bytes(self) -> int:
        """Bytes that the engine holds for weights."""
        return self._open_engine.weight_bytes

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors of the file."""
        return self._tensor_names

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the file."""
        return dict(self._metadata)

    def explain(
        self, *, timed: bool = False, feeds: Mapping[str, np.ndarray] | None = None
    ) -> list[KernelChoice]:
        """Say for each node which kernel runs it, and why the native engine does not where it does not.

        Parameters
        ----------
        timed : bool
            Also run each node some times, on one thread if it is machine code. ONNX Runtime's engine does not
            know the times of nodes.
        feeds : mapping of str to ndarray, optional
            Inputs to time the nodes on; by default :meth:`made_up_inputs`.

        Raises
        ------
        TypeError, ValueError, FormatError
            As :meth:`run`; ValueError also if no inputs can be made up.
        """
        if not timed:
            return self._open_engine.explain()
        given = self.made_up_inputs() if feeds is None else feeds
        return self._open_engine.explain(check_feeds(given, self._checks))

    @property
    def precision(self) -> str:
        """What products and convolutions may compute in: ``float32`` or ``int8``."""
        return self._precision

    def precision_report(
        self, inputs: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]] | None = None
    ) -> PrecisionReport:
        """Compare layers and outputs with those in float32, for a session of ``precision="int8"``.

        Opens the network twice more meanwhile. Inputs should be such as the network was trained on.

        Parameters
        ----------
        inputs : mapping, sequence of mappings, optional
            Feeds of one or several runs; by default noise.

        Raises
        ------
        ValueError
            If the session is of another precision, there are no inputs, or none can be made up.
        TypeError, FormatError
            As :meth:`run`; FormatError also if the file has changed.
        """
        from .engines.native import NativeEngine
        from .precision import measure_precision

        engine = self._open_engine
        if self._precision != "int8" or not isinstance(engine, NativeEngine):
            raise ValueError('only a session of precision="int8" can say what it loses')
        given = [inputs] if isinstance(inputs, Mapping) else inputs
        if given is None:
            given = [self.made_up_inputs(seed=seed) for seed in range(_MADE_UP_SAMPLES)]
        if not given:
            raise ValueError("no inputs to compare on")
        samples = [check_feeds(feeds, self._checks) for feeds in given]
        engine.run(self._output_names, samples[0])  # layers whose shapes no run has shown choose now
        names = [layer.value for layer in engine.int8_layers()]
        with self._reopen() as file:
            exact, rounded = (engine.with_outputs(names, file, kind) for kind in ("float32", "int8"))
        rounded.run(self._output_names, samples[0])
        found = measure_precision(
            exact, rounded, rounded.int8_layers(), self._output_names, samples, made_up=inputs is None
        )
        exact.close()
        rounded.close()
        return found

    def made_up_inputs(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Make inputs to try the network with: noise, integers 0 and 1; open axes get 1 (the batch) or 16.

        Parameters
        ----------
        seed : int
            Other inputs for another number.

        Raises
        ------
        ValueError
            If the graph does not declare the rank or the element type of an input, or an input is too large.
        """
        feeds = self._make_up(seed=seed)
        if feeds is None:
            raise ValueError("no inputs can be made up from what the graph declares; give some")
        return feeds


def _check_choice(what: str, choice: str, allowed: tuple[str, ...]) -> None:
    if choice not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, not {choice!r}")


def _read_graph(file: NqzFile, path: str | os.PathLike[str]) -> tuple[bytes, Model]:
    """Return the graph's bytes and what they say; check that the file has every tensor it reads."""
    graph_bytes = file.graph()
    if graph_bytes is None:
        raise ConversionError(
            f"{os.fspath(path)} cannot run: this file holds tensors only; use nqformat.load_file"
        )
    model = read_model(graph_bytes)
    if not all(value.name for value in model.graph.inputs + model.graph.outputs):
        raise CorruptError("the graph has an input or output without a name", section="GRAPH")
    missing = [name for name in model.graph.free_names if name not in file]
    if missing:
        raise CorruptError(
            f"the graph reads {', '.join(map(repr, missing))}, of which the file has no tensor",
            section="GRAPH",
        )
    return graph_bytes, model


@contextmanager
def _reopened(path: str | os.PathLike[str], limits: Limits | None, header: bytes) -> Iterator[NqzFile]:
    """Open a file again; FormatError if it has changed since."""
    with safe_open(path, limits=limits, bfloat16="uint16") as file:
        if file.header.to_bytes() != header:
            raise FormatError(
                f"{os.fspath(path)} has changed, and inputs of these shapes need it again", section="HEADER"
            )
        yield file


def _build_ort(
    graph_bytes: bytes,
    model: Model,
    file: NqzFile,
    settings: EngineSettings,
    reasons: Mapping[int, str],
) -> Engine:
    from .engines.ort import OrtEngine

    return OrtEngine(graph_bytes, model, file, settings, reasons)


def _ort_or_none(graph_bytes: bytes, model: Model, file: NqzFile, settings: EngineSettings) -> Engine | None:
    try:
        return _build_ort(graph_bytes, model, file, settings, {})
    except (MissingDependencyError, UnsupportedFeatureError):
        return None
