"""What the tables of the simulated company are made of: spans of time, ids in order of time, labels, timestamps."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]
"""One table as columns: customers and sessions by position, times in microseconds since the epoch."""

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


def span(rng: np.random.Generator, low: float, high: float, shape: int | tuple[int, int]) -> IntArray:
    """Whole microseconds, uniform in [low, high)."""
    return rng.integers(int(low), int(high), shape)


def wait(rng: np.random.Generator, least: int, mean: float, shape: int | tuple[int, int]) -> IntArray:
    """Whole microseconds: ``least`` and then an exponential wait."""
    return least + (rng.standard_exponential(shape) * mean).astype(np.int64)


def ids(prefix: str, count: int, width: int = 8) -> pa.Array:
    """``prefix`` and a number from 1, padded to ``width`` digits: built as one buffer, since millions are needed."""
    return numbered(prefix, np.arange(1, count + 1), width)


def numbered(prefix: str, number: IntArray, width: int = 8) -> pa.Array:
    """``prefix`` and each given number, padded to ``width`` digits."""
    count = len(number)
    text = np.empty((count, len(prefix) + width), np.uint8)
    text[:, : len(prefix)] = np.frombuffer(prefix.encode("ascii"), np.uint8)
    for place in range(width):
        text[:, -1 - place] = 48 + number % 10
        number = number // 10
    offsets = np.arange(count + 1, dtype=np.int32) * (len(prefix) + width)
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(text)])


def labels(names: tuple[str, ...], codes: NDArray[Any]) -> pa.Array:
    """The name at each code; null where a code is negative."""
    if len(codes) and codes.min() < 0:
        return pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))
    return pa.array(names, pa.string()).take(pa.array(codes))


def times(micros: IntArray) -> pa.Array:
    return pa.array(micros, pa.timestamp("us"))
