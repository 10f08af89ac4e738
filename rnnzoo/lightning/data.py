"""Data modules whose batches can be taken up anywhere: their order is a function of seed and epoch alone.

Shapes: N rows of a part, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, overload

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from rnnzoo.errors import UserError
from rnnzoo.lightning.framework import pl

T = TypeVar("T")
Key = TypeVar("Key")


class Batches(Generic[Key, T]):
    """The batches of one part, made one by one from keys.

    Args:
        plan: the keys of an epoch's batches in order, from the epoch's number.
        fetch: the batch of a key.
        position: epoch and number of batches already taken in it, asked when iteration begins.
    """

    def __init__(
        self,
        plan: Callable[[int], Sequence[Key]],
        fetch: Callable[[Key], T],
        position: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        self.plan, self.fetch, self.position = plan, fetch, position

    def __len__(self) -> int:
        return len(self.plan(0))

    def __iter__(self) -> Iterator[T]:
        epoch, taken = self.position()
        for key in islice(self.plan(epoch), taken, None):
            yield self.fetch(key)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the trainer knows the position. That both methods exist tells Lightning that we can resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore, see `state_dict`."""


def position(trainer: pl.Trainer) -> tuple[int, int]:
    """Epoch and number of training batches already taken in it; in a resumed run those before it count."""
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


def share(rows: Tensor) -> Tensor:
    """This process's part of a batch's rows: every n-th for n processes, all of them for one."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    processes = torch.distributed.get_world_size()
    if len(rows) < processes:
        raise UserError(f"a batch of {len(rows)} cannot be shared by {processes} processes; use fewer, or more data")
    return rows[torch.distributed.get_rank() :: processes]


class Cut(Sequence[Tensor]):
    """Row numbers in batches of nearly equal size, so that none is too small to be shared, each made when asked for.

    Args:
        order: the row numbers, or how many there are for 0, 1, ...
        batch_size: no batch is larger.
    """

    def __init__(self, order: Tensor | int, batch_size: int) -> None:
        self.order, self.rows = order, order if isinstance(order, int) else len(order)
        self.batches = -(-self.rows // batch_size)

    def __len__(self) -> int:
        return self.batches

    @overload
    def __getitem__(self, number: int) -> Tensor: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, number: int | slice) -> Tensor | Sequence[Tensor]:
        place = range(self.batches)[number]
        if isinstance(place, range):
            return [self[each] for each in place]
        size, larger = divmod(self.rows, self.batches)  # so many batches have one row more
        start = place * size + min(place, larger)
        end = start + size + (place < larger)
        return torch.arange(start, end) if isinstance(self.order, int) else self.order[start:end]


def in_order(rows: int, batch_size: int) -> Sequence[Tensor]:
    """Row numbers 0..rows-1, batch by batch."""
    return Cut(rows, batch_size)


def shuffled(rows: int, batch_size: int, seed: int, epoch: int) -> Sequence[Tensor]:
    """Row numbers 0..rows-1 in an order drawn from seed and epoch, batch by batch."""
    generator = torch.Generator().manual_seed(hash((seed, epoch)) % 2**63)
    return Cut(torch.randperm(rows, generator=generator), batch_size)


def parts_of(rows: int, val_fraction: float, test_fraction: float) -> tuple[int, int, int]:
    """Rows of the training, validation and test part; `UserError` where the fractions leave none to train on."""
    held_out = int(rows * val_fraction), int(rows * test_fraction)
    if val_fraction + test_fraction >= 1:
        raise UserError(
            f"task.val_fraction={val_fraction} and task.test_fraction={test_fraction} leave no training part"
        )
    return rows - sum(held_out), *held_out


class SequenceData(pl.LightningDataModule):
    """Base of the data modules: a training, a validation and a test part in memory, batch by batch.

    A subclass sets `train`, `val` and `test` in `read`, and its own `batch_size` and `seed`. A part is a tensor with
    rows first, or a named tuple of such tensors; another kind of part needs `count` and `batch` as well.
    """

    train: Any
    val: Any
    test: Any
    batch_size: int
    seed: int

    has_test = True
    at_once: int | None = None
    """Rows of a batch that is only evaluated; None for four times `batch_size`."""

    is_read = False

    def read(self) -> None:
        """Read or make the three parts; `prepare_data` is where what is missing is downloaded before."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Read the data, the first time."""
        if not self.is_read:
            self.read()
            self.is_read = True

    def facts(self) -> dict[str, Any]:
        """What a task's module has to know of the data, by the names of its arguments; once they are read."""
        return {}

    def baseline(self) -> dict[str, float]:
        """Test metrics of something simpler, to stand beside the model's in the summary."""
        return {}

    def count(self, part: Any) -> int:
        """Rows of a part."""
        return len(part) if isinstance(part, Tensor) else len(part[0])

    def batch(self, part: Any, rows: Tensor) -> Any:
        """The batch of these rows [B] of a part."""
        return part[rows] if isinstance(part, Tensor) else type(part)(*(tensor[rows] for tensor in part))

    def training_plan(self, epoch: int) -> Sequence[Tensor]:
        """The rows of each batch of a training epoch."""
        return shuffled(self.count(self.train), self.batch_size, self.seed, epoch)

    def evaluation_plan(self, part: Any) -> Sequence[Tensor]:
        """The rows of each batch of a part that is evaluated."""
        return in_order(self.count(part), self.at_once or 4 * self.batch_size)

    def train_dataloader(self) -> Any:
        return Batches(self.training_plan, lambda rows: self.batch(self.train, share(rows)), self.position)

    def val_dataloader(self) -> Any:
        return self._evaluated(self.val)

    def test_dataloader(self) -> Any:
        return self._evaluated(self.test)

    def _evaluated(self, part: Any) -> Any:
        plan = self.evaluation_plan(part)
        return Batches(lambda epoch: plan, lambda rows: self.batch(part, share(rows)))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """The batch in memory from where its copy to a GPU need not be waited for; Lightning's copies then are not."""
        if self.trainer is None or self.trainer.strategy.root_device.type != "cuda":
            return batch
        return apply_to_collection(batch, Tensor, Tensor.pin_memory)

    def position(self) -> tuple[int, int]:
        """Where the trainer is, for the training part's `Batches`."""
        return (0, 0) if self.trainer is None else position(self.trainer)
