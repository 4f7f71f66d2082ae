"""LitServe as its docs have it: a LitAPI that batches, photos as files of a form.

python benchmarks/parts/peer_litserve.py CHECKPOINT PORT
"""

import sys
from typing import Any

import litserve
import numpy as np

from benchmarks.parts.served_model import Bare


class Counter(litserve.LitAPI):  # type: ignore[misc]  # not installed where mypy runs
    """A worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002  # LitServe's signature
        """Load the model."""
        self._bare = Bare(sys.argv[1])

    # An annotation of the request would be the type of a JSON body.
    def decode_request(self, request) -> np.ndarray:  # type: ignore[no-untyped-def]  # noqa: ANN001
        """A form to pixels."""
        return self._bare.decode(request["photo"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """What predict takes."""
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[dict[str, Any]]:
        """Pixels to counts."""
        return self._bare.count(x)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What predict gave."""
        return output

    def encode_response(self, output: dict[str, Any]):  # type: ignore[no-untyped-def]  # noqa: ANN201  # as above
        """As it goes out."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Counter(max_batch_size=8, batch_timeout=0.01), accelerator="cpu", timeout=60)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
