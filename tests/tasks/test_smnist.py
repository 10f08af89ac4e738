"""Digits as sequences: IDX files good and bad, what the layer reads when, and what a run leaves."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from digits import idx, images, write_digits
from ready import ready
from torch import Tensor, nn

from rnnzoo import UserError
from rnnzoo.tasks import smnist
from rnnzoo.tasks.images import Images, softmax_regression
from rnnzoo.tasks.smnist import FILES, Digit, Digits, read_idx

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}
MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_digits(tmp_path / "digits", train=480, test=60)


def digit(cell: str = "gru", by: Any = "row", permute: bool = False, pooling: Any = "last", **options: Any) -> Digit:
    torch.manual_seed(0)
    model = {"cell": cell, "hidden_size": 5, **options}
    return Digit(model=model, optimizer=ADAM, engine="auto", seed=1, by=by, permute=permute, pooling=pooling)


# The files


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnzoo.tasks.smnist.LARGEST", 100_000)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(UserError, match=r"idx3-ubyte\.gz: more than 100,000 bytes when unpacked"):
        read_idx(path)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 28, 28)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_file_is_read(shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    array = np.arange(np.prod(shape)).reshape(shape)
    path = tmp_path / f"file{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    found = read_idx(path)
    assert found.dtype == np.uint8 and found.shape == shape and np.array_equal(found, array)


PIXELS, LABELS = images(30, 1)
BAD = {
    "nothing": (b"", "has 0 bytes, fewer than any IDX file"),
    "next to nothing": (b"\0\0\x08", "has 3 bytes, fewer than any IDX file"),
    "no dimension": (b"\0\0\x08\0a", "starts with 00 00 08 00, not 00 00 08 and 01 or 03"),
    "65 dimensions": (struct.pack(">HBB65I", 0, 8, 65, *[1] * 65) + b"a", "starts with 00 00 08 41, not"),
    "beyond all numbers": (struct.pack(">HBB3I", 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "0 × 4294967295 × 4294967295 byt"),
    "text": (b"<!DOCTYPE html>", "starts with 3c 21 44 4f, not 00 00 08"),
    "floats": (struct.pack(">HBB2I", 0, 13, 1, 1, 0), "starts with 00 00 0d 01"),
    "header cut off": (idx(PIXELS)[:10], "cut off within its header"),
    "cut off": (idx(PIXELS)[:-1], "30 × 28 × 28 bytes, 23519 follow"),
    "too long": (idx(PIXELS) + b"\0", "30 × 28 × 28 bytes, 23521 follow"),
    "labels": (idx(LABELS), r"its shape is \[30\], not \[images, 28, 28\]"),
    "other images": (idx(PIXELS[:, 1:]), r"its shape is \[30, 27, 28\], not \[images, 28, 28\]"),
}
BAD_LABELS = {
    "images": (idx(PIXELS), r"its shape is \[30, 28, 28\], but t10k-images-idx3-ubyte holds 60 images"),
    "too few": (idx(LABELS), r"its shape is \[30\], but t10k-images-idx3-ubyte holds 60 images"),
    "eleven classes": (idx(np.full(60, 10)), "label 10 is not below 10"),
}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("t10k-images-idx3-ubyte", *case) for case in BAD.values()]
    + [("t10k-labels-idx1-ubyte", *case) for case in BAD_LABELS.values()]
    + [
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS))[:-9], "damaged or not gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS))[:200], "damaged or not gzip"),
        ("train-images-idx3-ubyte.gz", idx(PIXELS), "damaged or not gzip"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(PIXELS))[:100] + bytes(100), "damaged or not gzip"),
    ],
)
def test_a_file_that_will_not_do(name: str, content: bytes, said: str, folder: Path) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        ready(Digits(str(folder), 10, 1))
    assert str(error.value).startswith(f"{folder / name}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [(11, 5, "train-labels.*: 11 images are too few to hold some out"), (12, 0, "t10k-labels.*: it is empty")],
)
def test_too_few_images(train: int, test: int, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        ready(Digits(str(write_digits(tmp_path / "few", train, test)), 10, 1))


def test_a_missing_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"task\.data=.*: holds neither t10k-labels-idx1-ubyte nor .*\.gz"):
        ready(Digits(str(folder), 10, 1))
    with pytest.raises(UserError, match=r"task\.data=.*nowhere: holds neither train-images-idx3-ubyte nor"):
        ready(Digits(str(tmp_path / "nowhere"), 10, 1))


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A server's folder; what it has is what the checksums are of."""
    where = tmp_path / "mirror"
    where.mkdir()
    for name in FILES:
        array = images(36, 1)["labels" in name]
        (where / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        monkeypatch.setitem(FILES, name, "gzip-sha256:" + hashlib.sha256(idx(array)).hexdigest())
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(where))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(smnist, "MIRROR", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield where
        server.shutdown()
        thread.join()


def test_the_files_are_downloaded(mirror: Path, own_cache: Path) -> None:
    data = ready(Digits(None, 10, 1))
    assert (len(data.train.labels), len(data.val.labels), len(data.test.labels)) == (33, 3, 36)
    assert sorted(path.name for path in own_cache.glob("[!.]*")) == sorted(f"{name}.gz" for name in FILES)
    assert np.array_equal(data.test.pixels.numpy(), images(36, 1)[0])


def test_a_download_of_something_else_is_dropped(mirror: Path, own_cache: Path) -> None:
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(images(36, 2)[1])))
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte\.gz: gzip-sha256 is .* the download was dropped"):
        ready(Digits(None, 10, 1))
    assert not (own_cache / "t10k-labels-idx1-ubyte.gz").exists()


def test_a_copy_in_the_cache_does_however_it_was_compressed(mirror: Path, own_cache: Path) -> None:
    own_cache.mkdir(exist_ok=True)
    for name in FILES:
        path = mirror / f"{name}.gz"
        (own_cache / path.name).write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
        path.unlink()
    assert np.array_equal(ready(Digits(None, 10, 1)).test.pixels.numpy(), images(36, 1)[0])


@pytest.mark.parametrize("damage", [b"", b"no gzip", gzip.compress(b"something else"), gzip.compress(b"cut off")[:-4]])
def test_what_else_is_in_the_cache_is_fetched_again(damage: bytes, mirror: Path, own_cache: Path) -> None:
    own_cache.mkdir(exist_ok=True)
    (own_cache / "t10k-labels-idx1-ubyte.gz").write_bytes(damage)
    assert np.array_equal(ready(Digits(None, 10, 1)).test.labels.numpy(), images(36, 1)[1])


@pytest.mark.data
@pytest.mark.skipif(not MNIST.is_dir(), reason="the real data are not here")
def test_the_real_files(own_cache: Path) -> None:
    """Their contents have the checksums that are known for them, and each class its known share."""
    path = MNIST / "train-images-idx3-ubyte.gz"
    assert hashlib.md5(gzip.decompress(path.read_bytes())).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    shutil.copytree(MNIST, own_cache, dirs_exist_ok=True)
    assert torch.equal(ready(Digits(None, 100, 1)).test.pixels, ready(Digits(str(MNIST), 100, 1)).test.pixels)
    data = ready(Digits(str(MNIST), 100, 1))
    assert (len(data.train.labels), len(data.val.labels), len(data.test.labels)) == (55_000, 5_000, 10_000)
    counts = torch.cat([data.train.labels, data.val.labels]).long().bincount().tolist()
    assert counts == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.labels.long().bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


# The splits


def test_every_image_is_in_one_part(folder: Path) -> None:
    data = ready(Digits(str(folder), 50, 1))
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    parts = [[loader.fetch(rows) for rows in loader.plan(0)] for loader in loaders]
    train, val, test = (Images(*map(torch.cat, zip(*part))) for part in parts)
    assert (len(train.labels), len(val.labels), len(test.labels)) == (440, 40, 60)
    pixels, labels = images(480, seed=480)
    given = sorted((*image.flatten(), label) for image, label in zip(pixels, labels))
    seen = sorted(
        (*image.flatten(), label)
        for part in (train, val)
        for image, label in zip(part.pixels.numpy(), part.labels.numpy())
    )
    assert seen == given
    assert np.array_equal(test.pixels, images(60, seed=60)[0]) and np.array_equal(test.labels, images(60, seed=60)[1])

    assert torch.equal(ready(Digits(str(folder), 50, 1)).val.pixels, data.val.pixels)
    assert not torch.equal(ready(Digits(str(folder), 50, 2)).val.pixels, data.val.pixels)


# The model


@pytest.mark.parametrize(("by", "permute"), [("row", False), ("pixel", False), ("row", True), ("pixel", True)])
def test_what_is_read_when(by: str, permute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = digit(by=by, permute=permute)
    seen: list[Tensor] = []
    real = module.layer.forward

    def noting(x: Tensor) -> Any:
        seen.append(x)
        return real(x)

    monkeypatch.setattr(module.layer, "forward", noting)
    pixels, _ = images(3, 1)
    module.classify(torch.from_numpy(pixels))
    [x] = seen
    order = np.random.RandomState(92916).permutation(784) if permute else np.arange(784)
    each = 28 if by == "row" else 1
    assert x.shape == (784 // each, 3, each)
    for t, feature, row in ((0, 0, 0), (5, each - 1, 2), (27, each // 2, 1)):
        pixel = order[t * each + feature]
        assert float(x[t, row, feature]) == pytest.approx(pixels[row, pixel // 28, pixel % 28] / 255)


def test_blanks_can_be_told_from_nothing() -> None:
    """What is multiplied by the last input says nothing of an image whose last row is zeros."""
    pixels = torch.randint(256, (1, 28, 28), dtype=torch.uint8)
    pixels[:, -1] = 0
    plain, centered = (
        Digit(model={"cell": "mamba", "hidden_size": 5}, centered=centered).eval() for centered in (False, True)
    )
    assert plain.sequence(pixels)[-1].abs().max() == 0 and centered.sequence(pixels)[-1].max() == -1
    wanted = pixels.double().reshape(28, 28) / 127.5 - 1
    torch.testing.assert_close(centered.sequence(pixels)[:, 0].double(), wanted, atol=1e-6, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels)[0], plain.head.bias)
        assert (centered(pixels)[0] - centered.head.bias).abs().max() > 1e-6


def test_the_permutation_never_changes() -> None:
    """Results with another one could not be compared, so that its beginning is written down here."""
    order = digit(permute=True).order
    assert sorted(order.tolist()) == list(range(784))
    assert order[:5].tolist() == [319, 576, 323, 107, 355]
    assert torch.equal(digit(by="pixel", permute=True).state_dict()["order"], order)
    # what torch.manual_seed(5544); torch.randperm(784) gives
    assert Digit(permute=True, permutation="torch-5544").order[:6].tolist() == [327, 72, 48, 129, 109, 101]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_answer_is_read_where_all_was_seen(bidirectional: bool, pooling: str) -> None:
    module = digit(bidirectional=bidirectional, pooling=pooling)
    gru = nn.GRU(28, 5, bidirectional=bidirectional)
    gru.load_state_dict(module.layer.torch_state_dict())
    pixels = torch.from_numpy(images(4, 1)[0])
    output, _ = gru((pixels.float() / 255).transpose(0, 1))
    weight, bias = module.head.weight, module.head.bias
    read = output.mean(0) if pooling == "mean" else output[-1]
    expected = read @ weight[:, : output.shape[-1]].T + bias
    if bidirectional and pooling == "last":
        expected = expected + output[0] @ weight[:, output.shape[-1] :].T
    assert torch.allclose(module(pixels), expected, atol=1e-6)
    assert torch.allclose(module.classify(pixels), expected.softmax(-1), atol=1e-6)


def test_classifying() -> None:
    module = digit(recurrent_dropout=0.5).train()
    pixels = torch.from_numpy(images(4, 1)[0])
    found = module.classify(pixels)
    assert found.shape == (4, 10) and not found.requires_grad and module.training
    assert torch.allclose(found.sum(-1), torch.ones(4))
    assert torch.equal(module.classify(pixels), found)
    assert torch.equal(module.classify(pixels.float()), found)
    with pytest.raises(UserError, match=r"images must be \[images, 28, 28\], not \[4, 784\]"):
        module.classify(pixels.flatten(1))


def test_metrics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    module = digit()
    logits = torch.full((4, 10), -1e9)
    logits[torch.arange(4), torch.tensor([1, 2, 3, 3])] = 0
    logits[3, 4] = 0
    monkeypatch.setattr(module, "forward", lambda pixels: logits)
    module.test_step(Images(torch.zeros(4, 28, 28, dtype=torch.uint8), torch.tensor([1, 2, 3, 4])), 0)
    found = module.test_metrics.compute()
    assert float(found["accuracy"]) == 0.75 and float(found["loss"]) == pytest.approx(np.log(2) / 4)
    assert [(label, answer) for _, label, answer in module.mistakes] == [(4, 3)]
    confusion = module.confusion.compute()
    assert confusion.sum() == 4 and confusion[4, 3] == 1 and confusion.diagonal().tolist() == [0, 1, 1, 1, *[0] * 6]


def test_the_baseline() -> None:
    """Classes that are bright in different places are told apart; where nothing tells, the most frequent wins."""
    train, test = (Images(*map(torch.from_numpy, images(count, count))) for count in (200, 100))
    assert softmax_regression(train, test) == 1
    blank = Images(torch.zeros(9, 28, 28, dtype=torch.uint8), torch.tensor([3, 3, 3, 3, 3, 1, 1, 1, 0]))
    assert softmax_regression(blank, blank) == pytest.approx(5 / 9)


# Runs


def test_digits_are_learned(folder: Path, train: Callable[..., Path]) -> None:
    run = train(
        "hardware=cpu", "task=smnist", f"task.data={folder}", "task.batch_size=20", "model.hidden_size=16",
        "trainer.max_epochs=6", "optimizer.lr=0.02",
    )  # fmt: skip
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.9 and metrics["val/accuracy"] > 0.9
    assert metrics["test/loss"] < 0.5
    assert metrics["baseline/test_accuracy"] == 1
    assert matplotlib.image.imread(run / "plots" / "mistakes.png").shape[:2] == (552, 1320)

    module = Digit.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    pixels, labels = images(60, seed=60)
    found = module.classify(torch.from_numpy(pixels)).argmax(-1).numpy()
    assert (found == labels).mean() == pytest.approx(metrics["test/accuracy"])


def test_permuted_pixels(folder: Path, train: Callable[..., Path]) -> None:
    run = train(
        "hardware=cpu", "task=psmnist", f"task.data={folder}", "task.batch_size=15", "model.hidden_size=2",
        "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
    )  # fmt: skip
    module = Digit.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert (module.hparams["by"], module.hparams["permute"]) == ("pixel", True)


def test_a_run_that_was_begun_with_an_idle_permutation_is_resumed(
    folder: Path, train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(Digit, "idle_without", {})
        run = train(
            "hardware=cpu", "task=smnist", f"task.data={folder}", "task.permutation=torch-5544", "model.hidden_size=2",
            "trainer.max_epochs=1",
        )  # fmt: skip
    assert train(f"resume={run}", "trainer.max_epochs=2") == run
    assert json.loads((run / "summary.json").read_text())["epochs"] == 2


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("task.by=column", "task.by=column: should be 'row' or 'pixel'"),
        ("task.permute=perhaps", "task.permute=perhaps"),
        ("task.data=nowhere", "task.data=nowhere: holds neither train-images-idx3-ubyte"),
        ("task.batch_size=0", "task.batch_size=0: should be greater than 0"),
        ("task.permutation=torch-5544", "task.permutation=torch-5544: changes nothing without task.permute;"),
    ],
)
def test_bad_input_ends_in_one_line(
    argument: str, said: str, folder: Path, train: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.parent.iterdir())
    with pytest.raises(SystemExit) as end:
        train("hardware=cpu", "task=smnist", f"task.data={folder}", argument)
    error = capsys.readouterr().err
    assert end.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert sorted(folder.parent.iterdir()) == before
