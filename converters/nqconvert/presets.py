"""Conversion settings and the named bundles of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from nqformat.dtypes import DType

from .quantizers.settings import QuantizerSettings
from .repair.settings import RepairSettings

__all__ = ["HESSIANS", "PRESETS", "REST_DTYPES", "ConvertSettings", "Preset", "preset_settings"]

HESSIANS = ("inputs", "identity")
REST_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """Everything that decides the bytes of a converted file.

    Attributes
    ----------
    preset : str
        Name of the bundle these settings started from.
    method : str
        Name of a quantizer, ``none`` for lossless.
    clusters : int
        Most codebook entries, not counting the zero of pruned tensors.
    scope : {"layer", "global", "channel"}
        One codebook for each tensor, one for all, or one for each channel.
    density : float or None
        Share of weights that pruning keeps; None leaves the zeros that are there.
    smaller_of_lossless : bool
        Keep a tensor losslessly where that takes fewer bytes than quantizing it.
    rest : {"float32", "bfloat16", "float16"}
        Precision of biases, norms and other small float32 tensors.
    step : float or None
        Step of uniform grids, in units of the root mean square (method ``uniform``).
    rate_penalty : float or None
        Cost of one bit as a share of the mean square (method ``ecsq``), or the loss in nats that one bit for
        every weight may cost (method ``obs``).
    width : int
        Elements of an entry (method ``vq``).
    product : bool
        A codebook for each place in a row (method ``vq``).
    sensitivity : str
        How errors of weights are weighted: a name of :func:`nqconvert.sensitivity.sensitivity_names`, or
        ``auto`` for what the model and the data allow.
    samples : int
        Most calibration samples to measure sensitivities on.
    sensitivity_power : float
        Sensitivities are raised to it; 0.5 trusts their extremes less.
    hessian : {"inputs", "identity"}
        Of layers (method ``obs``): from calibration inputs, or the identity, which needs none.
    repairs : RepairSettings
        What follows method ``obs``.
    seed : int
    """

    preset: str = "auto"
    method: str = "kmeans"
    clusters: int = 256
    scope: str = "layer"
    density: float | None = None
    smaller_of_lossless: bool = True
    rest: str = "float32"
    step: float | None = None
    rate_penalty: float | None = None
    width: int = 4
    product: bool = False
    sensitivity: str = "none"
    samples: int = 1000
    sensitivity_power: float = 1.0
    hessian: str = "inputs"
    repairs: RepairSettings = field(default_factory=RepairSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.density is not None and not 0.0 < self.density <= 1.0:
            raise ValueError(f"density must be above 0 and at most 1, not {self.density}")
        if self.rest not in REST_DTYPES:
            raise ValueError(f"rest must be one of {', '.join(REST_DTYPES)}, not {self.rest!r}")
        if self.hessian not in HESSIANS:
            raise ValueError(f"hessian must be one of {', '.join(HESSIANS)}, not {self.hessian!r}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if not self.sensitivity_power > 0:
            raise ValueError(f"sensitivity_power must be positive, not {self.sensitivity_power}")
        self.quantizer_settings()

    def quantizer_settings(self) -> QuantizerSettings:
        """Return the part that quantizers take."""
        return QuantizerSettings(
            clusters=self.clusters,
            scope=self.scope,
            codebook_dtype=DType.FLOAT16,
            step=self.step,
            rate_penalty=self.rate_penalty,
            width=self.width,
            product=self.product,
            seed=self.seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A named bundle of settings.

    Attributes
    ----------
    settings : ConvertSettings
    purpose : str
        One line for the command line's help.
    """

    settings: ConvertSettings
    purpose: str


def _choi(method: str, *, sensitivity: str = "none", clusters: int = 32) -> ConvertSettings:
    """Return settings of Choi, El-Khamy, Lee 2017: all layers in one pool."""
    return ConvertSettings(
        preset=f"choi-{method}",
        method=method,
        clusters=clusters,
        scope="global",
        smaller_of_lossless=False,
        sensitivity=sensitivity,
    )


PRESETS: dict[str, Preset] = {
    "auto": Preset(
        settings=ConvertSettings(),
        purpose="with calibration inputs as post-training; else exact k-means with 256 entries for each "
        "tensor, lossless where that is smaller",
    ),
    "post-training": Preset(
        settings=ConvertSettings(
            preset="post-training", method="obs", smaller_of_lossless=False, rest="bfloat16"
        ),
        purpose="error feedback through layer Hessians; needs calibration inputs, no labels",
    ),
    "lossless": Preset(
        settings=ConvertSettings(preset="lossless", method="none"),
        purpose="every bit kept; codebooks and zeros that are there are found",
    ),
    "deep-compression": Preset(
        settings=ConvertSettings(preset="deep-compression", clusters=16, smaller_of_lossless=False),
        purpose="Han et al. 2015: magnitude pruning with retraining, a 16-entry codebook a layer, Huffman",
    ),
    "choi-kmeans": Preset(
        settings=_choi("kmeans"),
        purpose="Choi et al. 2017: one k-means codebook for all layers together",
    ),
    "choi-hessian-kmeans": Preset(
        settings=_choi("hessian-kmeans", sensitivity="auto"),
        purpose="Choi et al. 2017: the same with errors weighted by the diagonal Hessian",
    ),
    "choi-uniform": Preset(
        settings=_choi("uniform", sensitivity="auto"),
        purpose="Choi et al. 2017: one uniform grid for all layers, Hessian-weighted means, entropy coding",
    ),
    "choi-ecsq": Preset(
        settings=_choi("ecsq", sensitivity="auto", clusters=256),
        purpose="Choi et al. 2017: iterative entropy-constrained quantization of all layers together",
    ),
    "inq": Preset(
        settings=ConvertSettings(preset="inq", method="inq", clusters=16, smaller_of_lossless=False),
        purpose="Zhou et al. 2017: zero and powers of two, 5 bits, without the retraining",
    ),
    "sparse-grids": Preset(
        settings=ConvertSettings(preset="sparse-grids", method="none"),
        purpose="the smallest files: pruning by surgery, then coarse grids, taught by the network as it was "
        "(needs --train)",
    ),
    "soft-weight-sharing": Preset(
        settings=ConvertSettings(preset="soft-weight-sharing", method="none"),
        purpose="Ullrich et al. 2017: retraining under a mixture prior (needs --train), kept exactly",
    ),
    "adaptive": Preset(
        settings=ConvertSettings(preset="adaptive", method="none"),
        purpose="Khoram, Li 2018: shortest binary fractions within a bound of the loss (needs --train)",
    ),
    "hashed": Preset(
        settings=ConvertSettings(preset="hashed", method="none"),
        purpose="Chen et al. 2015: weights share a few trained values by a hash (needs --train)",
    ),
    "vq": Preset(
        settings=ConvertSettings(preset="vq", method="vq"),
        purpose="Gong et al. 2014: k-means of 4 weights at a time, 256 entries for each tensor",
    ),
}


def preset_settings(name: str, **overrides: Any) -> ConvertSettings:
    """Return a preset's settings with single ones overridden; None keeps the preset's value.

    Raises
    ------
    ValueError
        If the preset is unknown or a setting is out of range.

    Examples
    --------
    >>> preset_settings("deep-compression", clusters=32).clusters
    32
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    chosen = {key: value for key, value in overrides.items() if value is not None}
    return replace(PRESETS[name].settings, **chosen)
