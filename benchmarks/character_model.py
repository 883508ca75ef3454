"""A small transformer that the benchmark trains itself: next characters of Python's own library."""

from __future__ import annotations

import hashlib
import math
import os
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

LENGTH = 64
N_CHARACTERS = 97
WIDTH, N_HEADS, N_LAYERS = 128, 4, 3
STEPS, BATCH, RATE = 900, 32, 3e-3
SEED = 0
_TEST_SHARE = 10


class _Layer(nn.Module):
    """Attention over the past and a hidden layer, each behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.value, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -1e9).triu(1), persistent=False)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, LENGTH, N_HEADS, WIDTH // N_HEADS).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        query, key, value = (self._heads(part(y)) for part in (self.query, self.key, self.value))
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // N_HEADS) + self.mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, LENGTH, WIDTH)
        x = x + self.out(mixed)
        return x + self.narrow(torch.relu(self.wide(self.norm2(x))))


class CharacterModel(nn.Module):
    """Logits of the next character, at each of 64 places."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(N_CHARACTERS, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.layers = nn.ModuleList([_Layer() for _ in range(N_LAYERS)])
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, N_CHARACTERS)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        x = self.characters(characters) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.out(self.norm(x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Characters as numbers: int64 of shape (n,), of training files and of one file in ten for tests."""

    training: np.ndarray
    test: np.ndarray

    def windows(self, part: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw `n` stretches of the training or test text: inputs and next characters, (n, 64) each."""
        text = self.training if part == "training" else self.test
        starts = np.random.default_rng(seed).integers(0, len(text) - LENGTH - 1, size=n)
        places = starts[:, None] + np.arange(LENGTH + 1)
        found = text[places]
        return found[:, :-1], found[:, 1:]


def library_texts() -> Texts:
    """The modules of the standard library that are single files, in order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for number, path in enumerate(sorted(folder.glob("*.py"))):
        parts[number % _TEST_SHARE == 0].append(path.read_bytes())
    training, test = (_numbers(b"".join(part)) for part in parts)
    return Texts(training=training, test=test)


def _numbers(text: bytes) -> np.ndarray:
    """Printable ASCII as 1 to 95, line ends as 96, all others as 0."""
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    numbers = np.where((codes >= 32) & (codes < 127), codes - 31, 0)
    return np.where(codes == 10, N_CHARACTERS - 1, numbers)


def trained_model(texts: Texts) -> CharacterModel:
    """Train, or load what an earlier run trained on the same text; a few CPU minutes."""
    torch.manual_seed(SEED)
    model = CharacterModel()
    digest = hashlib.sha256(texts.training.tobytes() + repr((STEPS, BATCH, RATE, SEED)).encode()).hexdigest()
    folder = Path(os.environ.get("NQZ_CACHE") or Path(tempfile.gettempdir()) / "nqz_benchmarks")
    path = folder / f"character_model_{digest[:16]}.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    _train(model, texts)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model.eval()


def _train(model: CharacterModel, texts: Texts) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    started = time.process_time()
    for step in range(STEPS):
        inputs, targets = (torch.from_numpy(a) for a in texts.windows("training", BATCH, seed=step))
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"character model: step {step + 1}, loss {loss.item():.3f}", flush=True)
    print(f"character model: trained in {time.process_time() - started:.0f} CPU seconds")
