"""Batches of row numbers: every row once, nearly equal sizes, an order of each epoch's own."""

from __future__ import annotations

import pytest
import torch

from rnnzoo.lightning.data import in_order, shuffled


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 100, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 32, 200])
def test_batches_cover_all_rows_and_none_is_much_smaller(rows: int, batch_size: int) -> None:
    for batches in (in_order(rows, batch_size), shuffled(rows, batch_size, seed=1, epoch=2)):
        sizes = [len(batch) for batch in batches]
        assert len(batches) == -(-rows // batch_size) and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1
        assert torch.cat([*batches]).sort().values.tolist() == list(range(rows))
        assert torch.equal(batches[-1], [*batches][-1]) and len(batches[1:]) == len(batches) - 1
        with pytest.raises(IndexError):
            batches[len(batches)]
    assert torch.cat([*in_order(rows, batch_size)]).tolist() == list(range(rows))
    first, again, other = (torch.cat([*shuffled(rows, batch_size, 1, epoch)]) for epoch in (0, 0, 1))
    assert torch.equal(first, again) and (rows < 32 or not torch.equal(first, other))
