"""Compiled kernels as object files, kept in a cache folder and loaded without importing Numba.

Each part of the kernels is an object of its own, so that a reader compiles no encoder. It is keyed by the
sources, the CPU with its features and the versions that produced it. A folder that is missing or cannot be
written costs a compilation a process and nothing else; a file that is damaged, or that another user may have
written, is ignored (``nqformat.cache_folder``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nqformat.cache_folder import cache_folder, read_cached, write_cached

__all__ = ["DECODER", "ENCODER", "KernelLibrary", "Part", "is_loaded", "kernel_library"]

_SHARED_SOURCES = tuple(f"nqformat.kernels.{name}" for name in ("blocks", "memory", "words", "objects"))
_SETTINGS = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT", "NUMBA_SLP_VECTORIZE")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Kernels that share an object file.

    Attributes
    ----------
    name : str
        Begins the name of the file in the cache.
    entry : str
        Module that defines ``run_kernel``, of two int64; imported on compilation only.
    helpers : tuple of str
        Modules beside it that the object is made from.
    """

    name: str
    entry: str
    helpers: tuple[str, ...]

    @property
    def sources(self) -> list[Path]:
        """Files that the object is made from."""
        package = self.entry.rpartition(".")[0]
        modules = (*_SHARED_SOURCES, self.entry, *(f"{package}.{name}" for name in self.helpers))
        found = (importlib.util.find_spec(module) for module in modules)
        return [Path(spec.origin) for spec in found if spec is not None and spec.origin is not None]

    def digest(self) -> str:
        """Return a hash of the files, which changes with the kernels."""
        return hashlib.sha256(b"\0".join(path.read_bytes() for path in self.sources)).hexdigest()


DECODER = Part(
    name="decoder",
    entry="nqformat.kernels.decoder",
    helpers=("chunk_symbols", "dense", "lookup", "prefix", "sparse", "tans"),
)
"""Kernels that read streams: apart from the others, so that a reader compiles no encoder."""

ENCODER = Part(name="encoder", entry="nqformat.kernels.encoder", helpers=("packing",))
"""Kernels that write streams."""


class KernelLibrary:
    """The kernels in memory; they run without holding the interpreter lock.

    Attributes
    ----------
    entry : int
        Address of the C function.
    """

    def __init__(self, entry: int, owner: Any) -> None:
        prototype = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
        )
        self.entry = entry
        self._call = prototype(entry)
        self._owner = owner

    def run(self, kernel: int, block_address: int) -> int:
        """Run a kernel; returns its status. The memory that the block names must stay alive."""
        return self.prepare(kernel, block_address)()

    def prepare(self, kernel: int, block_address: int) -> Callable[[], int]:
        """Return what runs a kernel again and again, in one thread at a time; see :meth:`run`."""
        status, fault = ctypes.c_int64(), ctypes.c_int64()
        places = (ctypes.c_void_p(ctypes.addressof(status)), ctypes.c_void_p(ctypes.addressof(fault)))
        call = functools.partial(self._call, *places, ctypes.c_int64(kernel), ctypes.c_int64(block_address))

        def run() -> int:
            failed = call()
            if failed:
                raise RuntimeError(f"kernel {kernel} failed with code {failed}; {fault.value}")
            return status.value

        return run


class _Loader:
    """Holds a library of the process, once there is one."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.lock = threading.Lock()
        self.library: KernelLibrary | None = None
        self.missed_cache = False
        self.failed = False


_loaders: dict[Part, _Loader] = {}


def _loader(part: Part) -> _Loader:
    return _loaders.get(part) or _loaders.setdefault(part, _Loader(part))


def is_loaded(part: Part) -> bool:
    """Whether the kernels of a part are in memory."""
    return _loader(part).library is not None


def kernel_library(part: Part, *, compile_missing: bool) -> KernelLibrary | None:
    """Return the kernels, from memory, from the cache or by compilation.

    Parameters
    ----------
    part : Part
    compile_missing : bool
        Compile if the cache has no object: some seconds, once for each machine.

    Returns
    -------
    KernelLibrary or None
        None without Numba, or if nothing is cached and compiling is not wanted.
    """
    loader = _loader(part)
    if loader.library is not None or loader.failed or (loader.missed_cache and not compile_missing):
        return loader.library
    with loader.lock:
        if loader.library is None and not loader.failed:
            try:
                _find_library(loader, compile_missing)
            except ImportError:
                loader.failed = True
    return loader.library


def _find_library(loader: _Loader, compile_missing: bool) -> None:
    if importlib.util.find_spec("llvmlite") is None:
        loader.failed = True
        return
    path = _object_path(loader.part)
    if path is not None and not loader.missed_cache:
        loader.library = _load_object(path)
        loader.missed_cache = loader.library is None
    if loader.library is None and compile_missing:
        if importlib.util.find_spec("numba") is None:
            loader.failed = True
            return
        import logging

        logging.getLogger(__name__).info(
            "compiling %s kernels, once for this machine and version", loader.part.name
        )
        loader.library, content = _compile(loader.part)
        loader.failed = loader.library is None
        if path is not None and content:
            write_cached(path, content)


def _object_path(part: Part) -> Path | None:
    """Where the object of this machine and these versions belongs; None without a cache folder."""
    folder = cache_folder()
    if folder is None:
        return None
    import llvmlite
    import llvmlite.binding as llvm

    parts = [path.read_bytes() for path in part.sources]
    words = [llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(), llvm.get_process_triple()]
    words += [llvmlite.__version__, _numba_version()]
    words += [platform.machine(), str(ctypes.sizeof(ctypes.c_void_p))]
    words += [os.environ.get(name, "") for name in _SETTINGS]
    key = hashlib.sha256(b"\0".join([*parts, *(word.encode() for word in words)])).hexdigest()
    return folder / f"{part.name}-{key[:32]}.bin"


def _numba_version() -> str:
    """Numba's version file, read without importing Numba; empty without Numba."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        return ""
    version = Path(found.origin).with_name("_version.py")
    return version.read_text() if version.exists() else found.origin


def _load_object(path: Path) -> KernelLibrary | None:
    """Load a cached object; None if there is none that can be trusted."""
    content = read_cached(path)
    if content is None:
        return None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        return None
    symbol, _, machine_code = rest.partition(b"\0")
    try:
        return _link_object(symbol.decode(), machine_code)
    except (RuntimeError, UnicodeDecodeError):
        return None


def _link_object(symbol: str, machine_code: bytes) -> KernelLibrary | None:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    entry = engine.get_function_address(symbol)
    return KernelLibrary(entry, (engine, machine)) if entry else None


def _compile(part: Part) -> tuple[KernelLibrary | None, bytes]:
    """Compile kernels with Numba; returns them with the content of their cache file.

    None and no content if the code needs more than the C library's memory functions.
    """
    from numba.core import compiler, types
    from numba.core.registry import cpu_target

    from .words import ObjectLibrary

    entry_module = importlib.import_module(part.entry)
    flags = compiler.Flags()
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    codegen = cpu_target.target_context.codegen()
    compile_extra: Callable[..., Any] = compiler.compile_extra
    compiled = compile_extra(
        cpu_target.typing_context,
        cpu_target.target_context,
        entry_module.run_kernel,
        (types.int64, types.int64),
        types.int64,
        flags,
        {},
        library=ObjectLibrary(codegen, part.name),
    )
    module = compiled.library._final_module
    if any(f.is_declaration and not f.name.startswith(("llvm.", "mem")) for f in module.functions):
        return None, b""
    symbol, machine_code = compiled.fndesc.llvm_func_name, codegen._tm.emit_object(module)
    rest = symbol.encode() + b"\0" + machine_code
    return _link_object(symbol, machine_code), hashlib.sha256(rest).digest() + rest
