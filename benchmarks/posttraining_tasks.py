"""What benchmarks/posttraining.py measures: trained networks, calibration inputs, test data and settings.

No setting is picked by its test accuracy: whole grids of rates, steps and quantization
parameters are measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import character_model
import numpy as np
import tiny_networks
from networks import (
    Labelled,
    LeNet5,
    LeNet300,
    cifar_images,
    cifar_resnet,
    filled_lenet,
    mnist_images,
)
from torch import nn

N_KEYWORD_CALIBRATION = 300
SEEDS = (0, 1, 2)
ALL_MODES = ("dependent", "plain", "dependent, opt_qp", "plain, opt_qp")
"""NNCodec's dependent quantization on and off, without and with its own choice of steps by layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A trained network with data that it was not tested on and data that it is tested on.

    Attributes
    ----------
    calibration : callable
        ``calibration(seed)`` draws unlabelled inputs.
    test : tuple of ndarray
        Inputs, and a class for each or for each place of each.
    rates : tuple of float
        Penalties of method ``obs``.
    one_seed : frozenset of float
        Rates that are measured with the first calibration seed only.
    qps : dict of str to tuple of int
        NNCodec's quantization parameters by mode.
    steps : tuple of float
        Steps of rounding to nearest, in root mean squares of a tensor.
    """

    name: str
    module: nn.Module
    calibration: Callable[[int], np.ndarray]
    test: Labelled
    rates: tuple[float, ...]
    qps: dict[str, tuple[int, ...]]
    steps: tuple[float, ...] = (0.25, 0.35, 0.5, 0.7, 0.9, 1.3)
    one_seed: frozenset[float] = field(default_factory=frozenset)

    @property
    def fp32_bytes(self) -> int:
        """Bytes of the parameters as float32, without the running statistics of batch norms."""
        return 4 * sum(parameter.numel() for parameter in self.module.parameters())

    def seeds(self, rate: float) -> tuple[int, ...]:
        """Calibration seeds that a rate is measured with."""
        return SEEDS[:1] if rate in self.one_seed else SEEDS


def _drawn(inputs: np.ndarray, count: int, prepare: Callable[[np.ndarray], np.ndarray]) -> Any:
    def calibration(seed: int) -> np.ndarray:
        return prepare(inputs[np.random.default_rng(seed).permutation(len(inputs))[:count]])

    return calibration


def _lenet(name: str, module: nn.Module, count: int, rates: tuple[float, ...]) -> Callable[[Path, Any], Task]:
    def make(folder: Path, load: Any) -> Task:
        images, _ = load.mnist("train")
        test_images, test_labels = load.mnist("test")
        return Task(
            name=name,
            module=filled_lenet(name, module, folder),
            calibration=_drawn(images, count, mnist_images),
            test=(mnist_images(test_images), test_labels.astype(np.int64)),
            rates=rates,
            qps=dict.fromkeys(ALL_MODES, tuple(range(-28, -5))),
            one_seed=frozenset((min(rates), max(rates))),
        )

    return make


def _resnet(name: str, n_blocks: int) -> Callable[[Path, Any], Task]:
    def make(folder: Path, load: Any) -> Task:
        images, _ = load.cifar10("train")
        test_images, test_labels = load.cifar10("test")
        rates = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
        return Task(
            name=name,
            module=cifar_resnet(name, n_blocks, folder),
            calibration=_drawn(images, 512, cifar_images),
            test=(cifar_images(test_images), test_labels.astype(np.int64)),
            rates=rates,
            qps={"dependent": (*range(-28, -22, 2), *range(-22, -17)), "plain": tuple(range(-24, -15, 4))},
            steps=(0.35, 0.5, 0.7, 0.9),
            one_seed=frozenset(rates) - {0.4},
        )

    return make


def _plain_images(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.astype(np.float32).transpose(0, 3, 1, 2))


def resnet8(folder: Path, load: Any) -> Task:
    """MLPerf Tiny's ResNet-8, trained on exact CIFAR-10, here on JPEG-recompressed images."""
    images, _ = load.cifar10("train")
    test_images, test_labels = load.cifar10("test")
    return Task(
        name="resnet8",
        module=tiny_networks.resnet8(load.resnet8()),
        calibration=_drawn(images, 2000, _plain_images),
        test=(_plain_images(test_images), test_labels.astype(np.int64)),
        rates=(0.05, 0.1, 0.2, 0.3, 0.4, 0.8, 1.6),
        qps=dict.fromkeys(ALL_MODES[:2], tuple(range(-32, -17, 2))),
        one_seed=frozenset((0.05, 0.8, 1.6)),
    )


def dscnn(folder: Path, load: Any) -> Task:
    """MLPerf Tiny's keyword spotter; 300 of 1,000 samples for calibration, 700 for the test."""
    samples, labels = load.kws()
    rest = slice(N_KEYWORD_CALIBRATION, None)
    return Task(
        name="dscnn",
        module=tiny_networks.dscnn(load.kws_dscnn()),
        calibration=_drawn(samples[:N_KEYWORD_CALIBRATION, None], N_KEYWORD_CALIBRATION, np.asarray),
        test=(np.ascontiguousarray(samples[rest, None]), labels[rest].astype(np.int64)),
        rates=(0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.4),
        qps=dict.fromkeys(ALL_MODES, tuple(range(-36, -9))),
    )


def characters(folder: Path, load: Any) -> Task:
    """Transformer that predicts characters of Python's library, each place of 2,000 stretches a test."""
    texts = character_model.library_texts()
    return Task(
        name="characters",
        module=character_model.trained_model(texts),
        calibration=lambda seed: texts.windows("training", 256, 10_000 + seed)[0],
        test=texts.windows("test", 2000, 0),
        rates=(0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        qps=dict.fromkeys(ALL_MODES[:2], tuple(range(-24, -7, 2))),
    )


TASKS: dict[str, Callable[[Path, Any], Task]] = {
    "lenet300_p8": _lenet("lenet300_p8", LeNet300(), 4000, (0.005, 0.01, 0.014, 0.02, 0.028)),
    "lenet5_p8": _lenet("lenet5_p8", LeNet5(), 2000, (0.005, 0.007, 0.01, 0.014, 0.02)),
    "resnet32_jpegft": _resnet("resnet32_jpegft", 5),
    "resnet20_jpegft": _resnet("resnet20_jpegft", 3),
    "dscnn": dscnn,
    "resnet8": resnet8,
    "characters": characters,
}
