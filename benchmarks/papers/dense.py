"""Dense networks that recipes start from, each trained once and remembered in the working folder."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from networks import LeNet5, LeNet300

from nqconvert.training import EpochRecord, retrain
from nqconvert.training.distillation import distillation_loss

from .data import Batches, Data, answers, cross_entropy, in_order
from .mnist import affine_copies
from .spoken import SpokenDigitLstm, SpokenDigitNet

N_COPIES = 4
N_TEACHERS = 2
TEACHER_LOSS = distillation_loss(temperature=3.0, share=0.7)
_INPUT_DROPOUT = 0.2


def working_folder() -> Path:
    """Where trained networks, checkpoints and files are kept: NQZ_WORK, or a temporary folder."""
    folder = Path(os.environ.get("NQZ_WORK") or Path(tempfile.gettempdir()) / "nqz_papers")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def telling(name: str) -> Callable[[EpochRecord], None]:
    """Report epochs on the terminal."""

    def tell(record: EpochRecord) -> None:
        judged = "" if record.validation_loss is None else f", validation {record.validation_loss:.4f}"
        print(
            f"{name}: stage {record.stage} epoch {record.epoch + 1}/{record.n_epochs}, density "
            f"{record.density:.4f}, loss {record.train_loss:.4f}{judged}, {record.seconds_left:.0f} s left",
            flush=True,
        )

    return tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """How a dense network is trained."""

    name: str
    build: Callable[[], torch.nn.Module]
    epochs: int
    loader: Batches
    loss: Any = cross_entropy

    def trained(self, mnist: Data, seed: int) -> torch.nn.Module:
        """Train, or load what was trained before."""
        path = working_folder() / f"{self.name}_{seed}.pt"
        torch.manual_seed(seed)
        module = self.build()
        if not path.exists():
            started = time.perf_counter()
            retrain(
                module,
                self.loader,
                self.loss,
                epochs=self.epochs,
                lr=2e-3,
                optimizer="adamw",
                weight_decay=1e-4,
                seed=seed,
                validation=in_order(mnist.validation_images, mnist.validation_labels),
                checkpoint=path.with_suffix(".checkpoint"),
                progress=telling(path.stem),
            )
            print(f"{path.stem}: {time.perf_counter() - started:.0f} s", flush=True)
            torch.save(module.state_dict(), path)
        module.load_state_dict(torch.load(path, weights_only=True))
        return module.eval()


def lenet5() -> torch.nn.Module:
    """LeNet-5 in the memory layout that trains fastest."""
    return LeNet5().to(memory_format=torch.channels_last)


def augmented(mnist: Data, *, plain_share: float = 0.25, teacher: bool = True) -> Batches:
    """Batches of affine copies, with the answers of a LeNet-5 that was trained on such copies."""
    folder = working_folder()
    copies = affine_copies(mnist.images, N_COPIES, folder)
    logits = None
    if teacher:
        path = folder / "lenet5_augmented_0_answers.npy"
        logits = answers(lenet5_augmented(mnist, 0), copies, path)
    return Batches(
        copies,
        mnist.labels,
        teacher=logits,
        n_items=len(mnist.images),
        n_plain=len(mnist.images),
        plain_share=plain_share,
    )


def first_affine_copy(mnist: Data) -> torch.Tensor:
    """One affine copy of each training image."""
    n_images = len(mnist.images)
    return affine_copies(mnist.images, N_COPIES, working_folder())[n_images : 2 * n_images]


def lenet5_augmented(mnist: Data, seed: int) -> torch.nn.Module:
    """LeNet-5 trained on affine copies of the training images."""
    loader = augmented(mnist, teacher=False)
    return Dense(name="lenet5_augmented", build=lenet5, epochs=10, loader=loader).trained(mnist, seed)


def lenet300_augmented(mnist: Data, seed: int) -> torch.nn.Module:
    """LeNet-300-100 trained on affine copies with LeNet-5 as its teacher."""
    recipe = Dense(
        name="lenet300_augmented",
        build=LeNet300,
        epochs=24,
        loader=augmented(mnist),
        loss=TEACHER_LOSS,
    )
    return recipe.trained(mnist, seed)


def lenet300_plain(mnist: Data, seed: int) -> torch.nn.Module:
    """LeNet-300-100 trained on the training images alone, a fifth of the pixels dropped."""
    loader = Batches(mnist.images, mnist.labels, input_dropout=_INPUT_DROPOUT)
    return Dense(name="lenet300_plain", build=LeNet300, epochs=20, loader=loader).trained(mnist, seed)


def spoken_cnn(data: Data, seed: int) -> torch.nn.Module:
    """Convolutional network for spoken digits, a fifth of the spectrogram dropped."""
    return _spoken("spoken_cnn", SpokenDigitNet, data, seed)


def spoken_lstm(data: Data, seed: int) -> torch.nn.Module:
    """Recurrent network for spoken digits, trained like the convolutional one."""
    return _spoken("spoken_lstm", SpokenDigitLstm, data, seed)


def _spoken(name: str, build: Callable[[], torch.nn.Module], data: Data, seed: int) -> torch.nn.Module:
    loader = Batches(data.images, data.labels, batch=50, input_dropout=_INPUT_DROPOUT)
    return Dense(name=name, build=build, epochs=30, loader=loader).trained(data, seed)


def own_teachers(mnist: Data) -> torch.Tensor:
    """Mean logits of two LeNet-300-100 of different seeds, trained on the same images."""
    path = working_folder() / "lenet300_plain_answers.npy"
    if path.exists():
        return answers(LeNet300(), mnist.images, path)
    import numpy as np

    all_answers = [answers(lenet300_plain(mnist, seed), mnist.images) for seed in range(N_TEACHERS)]
    mean = torch.stack(all_answers).mean(0)
    np.save(path, mean.numpy())
    return mean
