import pytest

torch = pytest.importorskip("torch")

from papers import table  # noqa: E402
from papers.data import Batches, cross_entropy  # noqa: E402
from papers.mnist import affine_copies  # noqa: E402
from papers.recipe import Recipe  # noqa: E402


def images(n):
    return torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 28, 28).contiguous()


def test_batches_take_the_share_of_plain_images_and_the_right_targets():
    plain = images(40)
    copies = torch.cat([plain, plain + 100, plain + 200])
    labels, logits = torch.arange(40), torch.arange(120.0)[:, None]
    loader = Batches(copies, labels, batch=7, teacher=logits, n_items=40, n_plain=40, plain_share=0.25)
    torch.manual_seed(0)
    seen = [(x * 255, *targets) for x, targets in loader]
    assert len(loader) == len(seen) == 6
    pixels, found, told = (torch.cat(parts) for parts in zip(*seen, strict=True))
    pixels = pixels[:, 0, 0, 0].round().long()
    assert torch.equal(pixels % 100, found % 100) and torch.equal(told[:, 0].long() % 40, found)
    assert int((pixels < 100).sum()) == 10 and pixels.numel() == 40


def test_batches_in_order_are_all_of_them():
    loader = Batches(images(10), torch.arange(10), batch=4, shuffled=False)
    assert torch.cat([y for _, y in loader]).tolist() == list(range(10))


def test_affine_copies_are_remembered_and_centred(tmp_path):
    square = torch.zeros(6, 1, 28, 28, dtype=torch.uint8)
    square[:, :, 10:18, 10:18] = 255
    made = affine_copies(square, 2, tmp_path)
    assert torch.equal(made[:6], square) and made.shape == (18, 1, 28, 28)
    mass = made.float().sum((1, 2, 3)) / square[0].float().sum()
    assert 0.6 < float(mass.min()) < float(mass.max()) < 1.6 and not torch.equal(made[6:12], square)
    assert torch.equal(made, affine_copies(torch.zeros_like(square), 2, tmp_path))


def test_cross_entropy_ignores_the_teacher():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 3])
    assert torch.equal(cross_entropy(logits, (labels, logits)), cross_entropy(logits, labels))


def test_the_table_has_a_line_for_each_measured_row_and_counts_goals(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "TABLE", tmp_path / "RESULTS.md")
    recipe = Recipe(
        network="Net", method="surgery", fp32_bytes=100_000, dense=lambda mnist: None,
        train=lambda module, work: module, goals=((100, 1.5), (40, 1.5), (40, None)), paper="Han 40 x",
    )  # fmt: skip
    row = {
        "seed": 0, "file_bytes": 2_000, "payload_bytes": 1_000,
        "test_percent_before": 1.0, "test_percent": 1.5,
        "drop": [0.5, 0.1, 0.9], "seconds": 60.0, "peak_bytes": 5e6, "inference_ms": 0.2,
        "facts": {"paper_ratio": 56.0},
    }  # fmt: skip
    other = {**row, "seed": 1, "file_bytes": 500, "test_percent": 1.6}
    table.write_table({"a": recipe, "b": recipe}, {"a": {"seeds": {"0": row, "1": other}}})
    text = (tmp_path / "RESULTS.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("| surgery")]
    assert "| 1.55 (1.50, 1.60) | x 1.55 |" in line and "| 1,250 | 80.0 | 100.0 | 56.0 |" in line
    assert "at least 100 x at no more than 1.50 %: met by 0 of 2 seeds" in text
    assert "at least 40 x at no more than 1.50 %: met by 1 of 2 seeds" in text
    assert "at least 40 x at no more than the dense network's error: met by 0 of 2 seeds" in text


def test_the_share_of_nncodec_is_counted_at_no_higher_error(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "TABLE", tmp_path / "RESULTS.md")
    recipe = Recipe(
        network="Net", method="surgery", fp32_bytes=100_000, dense=lambda mnist: None,
        train=lambda module, work: module, goals=(), paper="NNCodec", share_of_rival=0.6,
    )  # fmt: skip
    curve = [{"bytes": 1_000, "test_percent": 2.0}, {"bytes": 1_800, "test_percent": 1.0}]
    row = {
        "seed": 0, "file_bytes": 600, "payload_bytes": 500, "test_percent_before": 1.0, "test_percent": 2.0,
        "drop": [1.0, 0.1, 1.9], "seconds": 60.0, "peak_bytes": 5e6, "inference_ms": 0.2, "facts": {},
        "nncodec": curve,
    }  # fmt: skip
    better = {**row, "seed": 1, "file_bytes": 1_100, "test_percent": 1.5}
    least = {**row, "seed": 2, "file_bytes": 1_000, "test_percent": 0.5}
    unmeasured = {**row, "seed": 3, "nncodec": []}
    rows = {str(r["seed"]): r for r in (row, better, least, unmeasured)}
    table.write_table({"a": recipe}, {"a": {"seeds": rows}})
    text = (tmp_path / "RESULTS.md").read_text()
    told = "1,800 bytes at 1.00 % (file: 0.56 of it); 1,800 bytes at 1.00 % (file: 0.61 of it); 1,000 bytes"
    assert told in text
    assert "at most 0.6 of NNCodec's bytes at no higher error: met by 2 of 3 seeds" in text


def test_spectrograms_show_a_tone_where_it_is():
    import numpy as np
    from papers.spoken import N_BANDS, N_FRAMES, SpokenDigitNet, spectrograms

    time = np.arange(2000) / 8000
    tones = [(8000 * np.sin(2 * np.pi * f * time)).astype(np.int16) for f in (300.0, 1000.0, 3000.0)]
    made = spectrograms([*tones, tones[0][:100]])
    assert made.shape == (4, 1, N_BANDS, N_FRAMES) and bool(torch.isfinite(made).all())
    loudest = made[:3, 0, :, N_FRAMES // 2].argmax(1).tolist()
    mel = [2595 * np.log10(1 + f / 700) for f in (300.0, 1000.0, 3000.0)]
    top = 2595 * np.log10(1 + 4000 / 700)
    assert all(abs(b - (m / top * (N_BANDS + 1) - 1)) <= 1 for b, m in zip(loudest, mel, strict=True))
    assert not made[0, 0, :, 0].any()  # silence before
    assert SpokenDigitNet()(made).shape == (4, 10)


def test_nncodec_is_left_out_where_it_is_not_installed(monkeypatch):
    from papers.rival import nncodec_rows

    monkeypatch.delenv("NQZ_PEERS_PYTHON", raising=False)
    assert nncodec_rows(torch.nn.Linear(1, 1), None) == []


def test_batch_norms_folded_into_convolutions_change_nothing():
    from networks import CIFAR_MEAN, CIFAR_STD, CifarResNet
    from papers.cifar import PixelResNet

    torch.manual_seed(0)
    network = CifarResNet(1).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    pixels = torch.rand(2, 3, 32, 32)
    mean, deviation = (torch.from_numpy(a)[:, None, None] for a in (CIFAR_MEAN, CIFAR_STD))
    with torch.no_grad():
        before = network((pixels - mean) / deviation)
        folded = PixelResNet(network)
        assert torch.allclose(folded(pixels), before, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_moved_images_are_shifted_mirrored_and_taught():
    from papers.cifar import MovedImages
    from papers.data import Data

    from nqconvert.training import Taught

    square = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    square[:, :, 12:20, 4:8] = 255
    labels = torch.arange(40)
    none = torch.zeros(0)
    data = Data(
        images=square, labels=labels, validation_images=none, validation_labels=none,
        test_images=none, test_labels=none,
    )  # fmt: skip
    torch.manual_seed(0)
    teacher = torch.nn.Flatten()
    ((inputs, (found, logits)),) = Taught(MovedImages(data, batch=40), teacher)
    assert sorted(found.tolist()) == labels.tolist() and torch.equal(logits, inputs.flatten(1))
    bright = (inputs == 1).all(1)
    assert set(bright.sum((1, 2)).tolist()) == {8 * 4}, "nothing is shifted out"
    columns = bright.any(1).float().argmax(1)
    assert 0 <= int(columns.min()) < 8 and 20 <= int(columns.max()) < 32, "some are mirrored"
    assert len({tuple(image.nonzero()[0].tolist()) for image in bright}) > 15


def test_recurrent_and_character_networks_give_logits_in_the_order_of_labels():
    from papers.characters import CharacterClassifier
    from papers.spoken import N_BANDS, N_FRAMES, SpokenDigitLstm

    assert SpokenDigitLstm()(torch.zeros(2, 1, N_BANDS, N_FRAMES)).shape == (2, 10)
    assert CharacterClassifier()(torch.zeros(2, 64, dtype=torch.int64)).shape == (2, 97, 64)


def test_rows_of_all_networks_have_names_of_their_own():
    from papers.recipes import RECIPES

    assert {"lenet300-augmented", "lenet5-small", "resnet32", "spoken-lstm", "characters"} <= RECIPES.keys()
    assert RECIPES["resnet32"].goals == ((24, None),)
