"""One step of soft weight-sharing's penalty on as many weights as VGG-16 has: seconds and memory.

    python benchmarks/mixture_step.py [--weights 138000000]

Writes benchmarks/results/mixture_step.json.
"""

from __future__ import annotations

import argparse
import time

import torch
from harness import machine, write

from nqconvert.memory import PeakMemory
from nqconvert.training.sharing.mixture import Mixture, MixtureSettings

_DEVIATION = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=138_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(arguments.weights) * _DEVIATION)
    mixture = Mixture(MixtureSettings(), float(weight.detach().abs().max()))
    started, cpu = time.perf_counter(), time.process_time()
    with PeakMemory() as memory:
        loss = mixture.loss([weight])
        loss.backward()
    result = {
        "machine": machine("torch"),
        "n_weights": arguments.weights,
        "n_components": mixture.settings.components + 1,
        "weights_bytes": weight.numel() * 4,
        "peak_bytes_beside_weights": memory.peak_bytes,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "nats_a_weight": float(loss.detach()) / arguments.weights,
    }
    print(result)
    write("mixture_step", result)


if __name__ == "__main__":
    main()
