"""Which repairs follow or refine quantization."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DISTILLATIONS", "RepairSettings"]

DISTILLATIONS = ("none", "scales", "weights")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairSettings:
    """Repairs of method ``obs``; all compare with the network before quantization, none needs labels.

    Attributes
    ----------
    sequential : bool
        Quantize again, layer by layer, each for the inputs that the quantized layers before leave it, and
        aiming at its output before quantization. On held-out images takes 13 to 24 % of the divergence away
        on LeNet-300-100 and 23 % on ResNets of 20 and 32 layers, for bytes 1 % more to 2 % less.
    bias_correction : bool or None
        Make the mean of every product's output what it was, by its bias; None: without sequential
        calibration, after which it changes nothing. Takes 5 to 10 % of the divergence away on ResNets; on
        LeNets error feedback has set biases for less loss, and it is undone.
    batch_norm : bool
        Make mean and deviation behind every batch norm that is left in the graph what they were.
    scale_fit : bool
        Fit the step (or the codebook as a whole) of every weight so that its product's output has the least
        squared error; takes a tenth of the divergence away on LeNets and adds more on ResNets.
    distillation : {"none", "scales", "weights"}
        Train steps, codebook entries, biases and norms (``scales``), also the integers of weights that are
        not zero (``weights``), to give the answers that the network gave before.
        On LeNets ``weights`` takes two fifths of the divergence away for 1 % more bytes, ``scales`` a fifth
        or more for none; on ResNets of 20 and 32 layers with 512 inputs neither was of much use.
    distillation_epochs : int or None
        Passes over the calibration inputs; None: eight, fewer for a larger network, and no distillation where
        less than four would keep to about 60 billion multiplications forward.
    """

    sequential: bool = True
    bias_correction: bool | None = None
    batch_norm: bool = True
    scale_fit: bool = False
    distillation: str = "weights"
    distillation_epochs: int | None = None

    def __post_init__(self) -> None:
        if self.distillation not in DISTILLATIONS:
            raise ValueError(
                f"distillation must be one of {', '.join(DISTILLATIONS)}, not {self.distillation!r}"
            )
        if self.distillation_epochs is not None and self.distillation_epochs < 1:
            raise ValueError(f"distillation_epochs must be at least 1, not {self.distillation_epochs}")

    @property
    def corrects_biases(self) -> bool:
        """Whether biases are corrected."""
        return not self.sequential if self.bias_correction is None else self.bias_correction

    @property
    def any_wanted(self) -> bool:
        """Whether anything follows quantization."""
        matched = self.corrects_biases or self.batch_norm or self.scale_fit
        return matched or self.distillation != "none"
