"""The columns of rows and batches: the contract between the stream and everything that eats from it.

Every row: `id` is the string taken from the object's key (`00523` and `523` are different bins), `image` is RGB of
(batch, height, width, 3) uint8, `count` is EXPECTED_QUANTITY as int64.

Rows in batches for training have two facts more, int64, about the global batch that they belong to, and so the same on
all workers: `batch_rows`, how many real rows it has over all workers, and `next_position`, where in the epoch's order
of ids the next one begins. A row with the count PADDING only fills up a batch: no loss and no figure may count it.
"""

from typing import Final

import numpy as np

ID: Final = "id"
IMAGE: Final = "image"
COUNT: Final = "count"
POSITION: Final = "position"
"""Of rows that are not in batches yet: the place of the id in its split, int64."""
WIDTH: Final = "width"
HEIGHT: Final = "height"
"""Of rows that are not in batches, if asked for: pixels of the photo's file, int64."""
BATCH_ROWS: Final = "batch_rows"
NEXT_POSITION: Final = "next_position"

PADDING: Final = -1

ArrayBatch = dict[str, np.ndarray]
"""Columns as NumPy arrays, as the stream yields them."""
