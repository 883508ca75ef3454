"""Real networks as the codec sees them: indices and codebooks of all weight matrices, by our k-means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import compare, loaders, state_dict
from peer_codecs import Coder, index_coders

import nqformat
from nqconvert.quantizers import QuantizerSettings
from nqconvert.quantizers.kmeans import quantize_kmeans
from nqformat import CodebookTensor
from nqformat.accounting import order0_bits

_SOURCES = {
    "LeNet-300-100 8 %": "pruned_lenets/lenet300_p8.pt",
    "LeNet-5 8 %": "pruned_lenets/lenet5_p8.pt",
    "ResNet-32 dense": "resnet_cifar10/resnet32_jpegft.pt",
}
_DECODE_ROUNDS, _ENCODE_ROUNDS = 9, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network's weight matrices, quantized: biases and norms are left out for all coders alike."""

    name: str
    tensors: dict[str, CodebookTensor]

    @property
    def n_weights(self) -> int:
        return sum(tensor.indices.size for tensor in self.tensors.values())

    @property
    def entropy_bytes(self) -> float:
        """Order-0 entropy of the indices, each tensor's own, without any table."""
        return sum(order0_bits(t.indices.reshape(-1)) for t in self.tensors.values()) / 8

    @property
    def integers(self) -> dict[str, np.ndarray]:
        """Ranks of the entries with zero in the middle, as arithmetic coders of integers like them."""
        made = {}
        for name, tensor in self.tensors.items():
            values = tensor.codebook.values
            ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
            made[name] = (ranks - ranks[np.abs(values).argmin()])[tensor.indices].astype(np.int32)
        return made


def quantized_networks(folder: Path) -> Iterator[Network]:
    """16 and 32 clusters a layer; SqueezeNet as Han et al. published it."""
    for name, file in _SOURCES.items():
        matrices = {n: w for n, w in state_dict(folder / file).items() if w.ndim > 1}
        for clusters in (16, 32):
            yield _quantized(f"{name}, {clusters}", matrices, clusters)
    layers, _ = loaders(folder).squeezenet_deepcomp()
    yield _quantized("SqueezeNet, as is", {name: weight for name, (weight, _) in layers.items()}, 256)


def _quantized(name: str, matrices: dict[str, np.ndarray], clusters: int) -> Network:
    made = quantize_kmeans(matrices, None, QuantizerSettings(clusters=clusters))
    return Network(name=name, tensors={n: t for n, t in made.items() if isinstance(t, CodebookTensor)})


def network_row(
    network: Network, zstd_levels: tuple[int, ...], peer: dict[str, Any] | None
) -> dict[str, Any]:
    """Bytes and CPU seconds of every coder.

    nqz is charged for the whole file (header, checksums, codebooks) and decodes to float32 weights; the
    others are charged for the coded indices alone and stop at indices. "open": from a file that was
    opened before, without reading its directory again.
    """
    streams = [tensor.indices.reshape(-1).astype(np.uint8) for tensor in network.tensors.values()]
    coders = {**_ours(network), **index_coders(streams, zstd_levels)}
    decoding = compare({name: coder.decode for name, coder in coders.items()}, rounds=_DECODE_ROUNDS)
    encoding = compare(
        {name: coder.encode for name, coder in coders.items() if not name.endswith("open")},
        rounds=_ENCODE_ROUNDS,
    )
    rows = {
        name: {
            "bytes": coder.n_bytes,
            "encode": encoding[name.removesuffix(", open")],
            "decode": decoding[name],
        }
        for name, coder in coders.items()
    }
    if peer is not None:
        rows["NNCodec"] = peer
    n = network.n_weights
    for row in rows.values():
        row["over_entropy"] = row["bytes"] / network.entropy_bytes
        row["decode_msymbols_per_second"] = n / row["decode"]["median"] / 1e6
        row["encode_msymbols_per_second"] = n / row["encode"]["median"] / 1e6
        row["decode_ratio_to_zstd_1"] = rows["zstd -1"]["decode"]["median"] / row["decode"]["median"]
    return {"n_weights": n, "n_tensors": len(streams), "entropy_bytes": network.entropy_bytes, "coders": rows}


def _ours(network: Network) -> dict[str, Coder]:
    coders = {}
    for prefer in ("size", "speed"):
        content = nqformat.save(network.tensors, prefer=prefer)
        decoded = nqformat.load(content)
        assert all(np.array_equal(decoded[n], t.decode()) for n, t in network.tensors.items())
        coders[f"nqz {prefer}"] = Coder(
            n_bytes=len(content),
            encode=lambda prefer=prefer: nqformat.save(network.tensors, prefer=prefer),
            decode=lambda content=content: nqformat.load(content, threads=1),
        )
        file = nqformat.from_bytes(content, threads=1)
        coders[f"nqz {prefer}, open"] = Coder(
            n_bytes=len(content),
            encode=coders[f"nqz {prefer}"].encode,
            decode=lambda file=file: [file.get_tensor(name) for name in network.tensors],
        )
    return coders


def network_table(name: str, row: dict[str, Any]) -> str:
    """A network's rows as text."""
    n = row["n_weights"]
    lines = [
        f"{name}: {n:,} weights in {row['n_tensors']} tensors, "
        f"order-0 entropy {row['entropy_bytes']:,.0f} bytes",
        f"  {'coder':15} {'bytes':>9} {'of entropy':>10} {'decode Msym/s':>13} {'float32 GB/s':>12} "
        f"{'x zstd -1':>9} {'encode Msym/s':>13}",
    ]
    for coder, found in row["coders"].items():
        speed = found["decode_msymbols_per_second"]
        lines.append(
            f"  {coder:15} {found['bytes']:>9,} {found['over_entropy']:>10.3f} {speed:>13,.0f} "
            f"{speed * 4e-3 if coder.startswith('nqz') else float('nan'):>12.2f} "
            f"{found['decode_ratio_to_zstd_1']:>9.2f} {found['encode_msymbols_per_second']:>13,.1f}"
        )
    return "\n".join(lines)
