"""Spoken digits: spectrograms of recordings at 8 kHz, and two small networks for them."""

from __future__ import annotations

import numpy as np
import torch
from harness import loaders, required_data_folder
from torch import nn

from .data import Data

N_BANDS, N_FRAMES = 32, 48
_N_CELLS = 128
_WINDOW, _HOP = 256, 128
_FLOOR = 1e-6
_VALIDATION_EVERY = 9


class SpokenDigitNet(nn.Module):
    """Three convolutions and two linear layers, 169,872 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.c3 = nn.Conv2d(32, 48, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(48 * (N_BANDS // 8) * (N_FRAMES // 8), 130), nn.Linear(130, 10)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.max_pool2d(torch.relu(self.c1(spectrogram)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.c2(hidden)), 2)
        hidden = nn.functional.max_pool2d(torch.relu(self.c3(hidden)), 2)
        return self.fc2(torch.relu(self.fc1(hidden.flatten(1))))


class SpokenDigitLstm(nn.Module):
    """An LSTM over 24 pairs of frames and a linear layer on the mean of its outputs, 100,618 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2 * N_BANDS, _N_CELLS, batch_first=True)
        self.out = nn.Linear(_N_CELLS, 10)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        frames = spectrogram[:, 0].transpose(1, 2).reshape(-1, N_FRAMES // 2, 2 * N_BANDS)
        outputs, _ = self.lstm(frames)
        logits: torch.Tensor = self.out(outputs.mean(1))
        return logits


def load_spoken_digits() -> Data:
    """Return `fsdd`: its official 300 recordings for the test, every ninth other for choices."""
    load = loaders(required_data_folder())
    waves, labels = load.fsdd("train")
    test_waves, test_labels = load.fsdd("test")
    inputs, test = spectrograms(waves), spectrograms(test_waves)
    held_out = torch.arange(len(inputs)) % _VALIDATION_EVERY == 0
    classes = torch.from_numpy(np.asarray(labels)).long()
    return Data(
        images=inputs[~held_out],
        labels=classes[~held_out],
        validation_images=inputs[held_out],
        validation_labels=classes[held_out],
        test_images=test,
        test_labels=torch.from_numpy(np.asarray(test_labels)).long(),
    )


def spectrograms(waves: list[np.ndarray]) -> torch.Tensor:
    """Return log powers of 32 bands (widening as the ear's) in 48 frames of 16 ms, float32 (n, 1, 32, 48).

    A recording's own mean is taken away; what is shorter than 48 frames stands in the middle of silence.
    """
    bands = _bands()
    made = np.zeros((len(waves), 1, N_BANDS, N_FRAMES), dtype=np.float32)
    window = np.hanning(_WINDOW)
    for place, wave in enumerate(waves):
        padded = np.pad(wave.astype(np.float64) / 32768, (0, max(0, _WINDOW - len(wave))))
        starts = np.arange(0, len(padded) - _WINDOW + 1, _HOP)[:N_FRAMES]
        frames = np.stack([padded[s : s + _WINDOW] for s in starts]) * window
        power = np.log(np.abs(np.fft.rfft(frames)) ** 2 @ bands + _FLOOR)
        first = (N_FRAMES - len(starts)) // 2
        made[place, 0, :, first : first + len(starts)] = ((power - power.mean()) / 3).T
    return torch.from_numpy(made)


def _bands() -> np.ndarray:
    """Return triangular filters over the bins of the spectrum, evenly spaced in mel."""
    top = 2595 * np.log10(1 + 4000 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, N_BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_WINDOW, 1 / 8000)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters: np.ndarray = np.clip(np.minimum(rising, falling), 0, None)
    nearest = np.abs(bins - edges[1:-1]).argmin(0)
    filters[nearest, np.arange(N_BANDS)] = np.maximum(filters[nearest, np.arange(N_BANDS)], 0.5)
    return filters
