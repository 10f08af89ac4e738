"""Data that have been read, as a trainer would have seen to."""

from typing import TypeVar

from rnnzoo.lightning.data import SequenceData

Data = TypeVar("Data", bound=SequenceData)


def ready(data: Data) -> Data:
    """The data module itself, its parts read."""
    data.setup()
    return data
