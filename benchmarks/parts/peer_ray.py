"""Ray Serve with FastAPI as its docs have it: an ingress, @serve.batch, and its defaults.

python benchmarks/parts/peer_ray.py CHECKPOINT PORT
"""

import signal
import sys
from typing import Any

from fastapi import FastAPI, Request
from ray import serve

from data.session import ray_session

api = FastAPI()


@serve.deployment
@serve.ingress(api)
class Counter:
    """A replica."""

    def __init__(self, checkpoint_dir: str) -> None:
        from benchmarks.parts.served_model import Bare

        self._bare = Bare(checkpoint_dir)

    @serve.batch(max_batch_size=8)
    async def _count(self, photos: list[bytes]) -> list[dict[str, Any]]:
        return self._bare.count([self._bare.decode(photo) for photo in photos])

    @api.post("/count")
    async def count(self, request: Request) -> dict[str, Any]:
        """Count a photo."""
        answer: dict[str, Any] = await self._count(await request.body())
        return answer


def main() -> None:
    """Serve until SIGTERM."""
    with ray_session():
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        serve.run(Counter.bind(sys.argv[1]))  # type: ignore[attr-defined]  # the decorators' types hide the deployment
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    main()
