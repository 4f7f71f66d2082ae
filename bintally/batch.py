"""The columns of a batch: the contract between the stream and everything that eats from it.

`id` is the string taken from the object's key (`00523` and `523` are different bins), `image` is RGB of (batch, height,
width, 3) uint8, `count` is EXPECTED_QUANTITY as int64.
"""

from typing import Final

import numpy as np

ID: Final = "id"
IMAGE: Final = "image"
COUNT: Final = "count"

ArrayBatch = dict[str, np.ndarray]
"""The three columns as NumPy arrays, as the stream yields them."""
