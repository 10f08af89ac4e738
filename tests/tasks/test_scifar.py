"""Photographs as sequences: archives good and bad, what the layer reads when, and what a run leaves."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from digits import archive, photographs, records, write_photographs
from ready import ready
from torch import Tensor

from rnnzoo import UserError
from rnnzoo.tasks import scifar
from rnnzoo.tasks.scifar import Photograph, Photographs, grey_of, read_archive

ADAM = {"name": "adam", "lr": 0.01, "schedule": "constant"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "cifar-10-binary.tar.gz", train=24, test=60)


def files(**changes: bytes) -> dict[str, bytes]:
    """What an archive holds, by name without folder and ending, two images a file unless changed."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    return {f"cifar/{name}.bin": changes.get(name, records(*photographs(2, 1))) for name in names}


def photograph(**options: Any) -> Photograph:
    torch.manual_seed(0)
    return Photograph(model={"cell": "gru", "hidden_size": 5}, optimizer=ADAM, engine="auto", seed=1, **options)


# The files


@pytest.mark.parametrize("unpacked", [None, "cifar-10-batches-bin", "."], ids=["archive", "folder", "above"])
def test_every_image_is_in_one_part(unpacked: str | None, data: Path, tmp_path: Path) -> None:
    if unpacked is not None:
        with tarfile.open(data) as opened:
            opened.extractall(tmp_path, filter="data")
        data = tmp_path / unpacked
    read = ready(Photographs(str(data), batch_size=7))
    assert read.train.pixels.shape == (108, 3, 32, 32) and len(read.val.labels) == 12
    given = [(label, image.tobytes()) for n in range(1, 6) for image, label in zip(*photographs(24, n))]
    parts = (read.train, read.val)
    seen = [(int(y), x.numpy().tobytes()) for part in parts for x, y in zip(part.pixels, part.labels)]
    assert sorted(seen) == sorted(given)
    pixels, labels = photographs(60, 6)
    assert np.array_equal(read.test.pixels, pixels) and np.array_equal(read.test.labels, labels)
    assert not torch.equal(ready(Photographs(str(data), seed=2)).val.pixels, read.val.pixels)


def test_grey_is_what_photographers_mean_by_it() -> None:
    pixels, _ = photographs(5, 1)
    exact = np.einsum("c,nchw->nhw", [0.299, 0.587, 0.114], pixels)
    found = grey_of(torch.from_numpy(pixels))
    assert found.dtype == torch.uint8 and found.shape == (5, 1, 32, 32)
    assert np.abs(found[:, 0].numpy() - exact).max() <= 0.5 + 1e-9
    assert grey_of(torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)).min() == 255


BAD = {
    "cut off within an image": (
        files(data_batch_2=records(*photographs(2, 1))[:-1]),
        r"data_batch_2\.bin has 6,145 by",
    ),
    "empty": (files(test_batch=b""), r"test_batch\.bin has 0 bytes, no multiple of 3,073"),
    "eleventh class": (files(data_batch_5=bytes([10, *bytes(3072)])), "label 10 is not below 10"),
    "one is missing": ({k: v for k, v in files().items() if "4" not in k}, r"holds no data_batch_4\.bin"),
    "another": ({"a.txt": b"a"}, r"holds no data_batch_1\.bin; give cifar-10-binary"),
    "twice": (files() | {"other/test_batch.bin": b""}, r"test_batch\.bin is there twice"),
    "too few": (files(**{f"data_batch_{n}": records(*photographs(1, n)) for n in range(1, 6)}), "5 images are too few"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_archive_that_will_not_do(case: str, tmp_path: Path) -> None:
    held, said = BAD[case]
    path = archive(tmp_path / "given.tar.gz", held)
    with pytest.raises(UserError, match=said) as error:
        ready(Photographs(str(path)))
    assert str(error.value).startswith(f"task.data={path}: ") and "\n" not in str(error.value)


def test_a_damaged_archive(data: Path, tmp_path: Path) -> None:
    whole = data.read_bytes()
    stored = gzip.compress(gzip.decompress(whole), 0)  # not compressed, so that a wrong byte is a wrong pixel
    for content in (whole[: len(whole) // 2], b"PK\3\4", b"", stored[:5000] + b"\7" + stored[5001:]):
        data.write_bytes(content)
        with pytest.raises(UserError, match="damaged or not a tar archive"):
            ready(Photographs(str(data)))
    data.write_bytes(stored)
    assert len(ready(Photographs(str(data))).test.labels) == 60
    with pytest.raises(UserError, match=r"task\.data=.*nowhere: no such file or folder"):
        ready(Photographs(str(tmp_path / "nowhere")))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    names = ["cifar-10-batches-py/data_batch_1", "cifar-10-batches-py/test_batch"]
    path = archive(tmp_path / "cifar-10-python.tar.gz", dict.fromkeys(names, pickle.dumps(Runs())))
    with tarfile.open(path) as opened:
        opened.extractall(tmp_path, filter="data")
    for given in (path, tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(UserError, match=rf"{given}: the Python version, whose .* give cifar-10-binary\.tar\.gz"):
            ready(Photographs(str(given)))
    assert not (tmp_path / "ran").exists()


def test_what_leads_elsewhere_or_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as made:
        member = tarfile.TarInfo("test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(member)
    with pytest.raises(UserError, match=r"test_batch\.bin is there twice or is a link"):
        read_archive(path)
    bomb = io.BytesIO()
    with tarfile.open(fileobj=bomb, mode="w") as made:
        member = tarfile.TarInfo("readme.txt")
        member.size = 200_000
        made.addfile(member, io.BytesIO(bytes(200_000)))
    path.write_bytes(gzip.compress(bomb.getvalue()))
    monkeypatch.setattr(scifar, "LARGEST", 100_000)
    with pytest.raises(UserError, match="more than 100,000 bytes when unpacked"):
        read_archive(path)


def test_the_archive_is_downloaded(data: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the page of the data set, by the checksum there; how, `test_download.py` shows."""
    monkeypatch.setattr(scifar, "URL", data.as_uri())
    monkeypatch.setattr(scifar, "CHECKSUM", "md5:" + hashlib.md5(data.read_bytes()).hexdigest())
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(scifar, "download", lambda *given: asked.append(given) or data)
    assert len(ready(Photographs()).test.labels) == 60
    assert {given[:3] for given in asked} == {(scifar.URL, "cifar-10-binary.tar.gz", scifar.CHECKSUM)}


# The model


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize(("by", "steps"), [("row", None), ("pixel", None), ("row", 40), ("pixel", 1030)])
def test_what_is_read_when(by: Any, steps: int | None, grey: bool) -> None:
    module = photograph(by=by, steps=steps, grey=grey)
    pixels = torch.from_numpy(photographs(4, 1)[0])[:, : 1 if grey else 3]
    channels = pixels.shape[1]
    x = module.sequence(pixels)
    pieces = 32 if by == "row" else 1024
    assert x.shape == (steps or pieces, 4, channels * 1024 // pieces)
    for b, channel, row, column in ((0, 0, 0, 0), (1, channels - 1, 5, 31), (3, channels // 2, 31, 7)):
        place = (row, b, channel * 32 + column) if by == "row" else (row * 32 + column, b, channel)
        assert float(x[place]) == pytest.approx(pixels[b, channel, row, column] / 255)
    if steps is not None:  # normal noise, the same for all images, recorded and drawn from the seed
        noise = x[pieces:]
        assert torch.equal(noise, noise[:, :1].expand_as(noise)) and torch.equal(
            module.state_dict()["noise"], noise[:, :1]
        )
        assert torch.equal(photograph(by=by, steps=steps, grey=grey).noise, module.noise)
    assert torch.allclose(module.classify(pixels), module(pixels).softmax(-1))


def test_noise_is_normal() -> None:
    noise = photograph(steps=1000).noise
    assert noise.shape == (968, 1, 96) and abs(float(noise.mean())) < 0.02 and abs(float(noise.std()) - 1) < 0.02


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match=r"task\.steps=31: an image alone has 32"):
        photograph(steps=31)
    with pytest.raises(UserError, match=r"images must be \[images, 3, 32, 32\], not \[2, 1, 32, 32\]"):
        photograph().classify(torch.zeros(2, 1, 32, 32))


# Runs


def test_photographs_are_learned(data: Path, train: Callable[..., Path]) -> None:
    run = train(
        "hardware=cpu", "task=scifar", f"task.data={data}", "task.batch_size=10", "model.hidden_size=16",
        "trainer.max_epochs=6", "optimizer.lr=0.02",
    )  # fmt: skip
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.3
    assert metrics["baseline/test_accuracy"] > 0.9
    labels = photographs(60, 6)[1]
    assert metrics["baseline/trivial_accuracy"] in [pytest.approx((labels == k).mean()) for k in range(10)]
    assert matplotlib.image.imread(run / "plots" / "mistakes.png").shape[:2] == (552, 1320)
    module = Photograph.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True)
    pixels, labels = photographs(60, 6)
    found: Tensor = module.classify(torch.from_numpy(pixels)).argmax(-1)
    assert (found.numpy() == labels).mean() == pytest.approx(metrics["test/accuracy"])
