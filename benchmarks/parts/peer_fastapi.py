"""FastAPI as its docs have it: the endpoint awaits the body, and what would block goes to the thread pool.

python benchmarks/parts/peer_fastapi.py CHECKPOINT PORT
"""

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from benchmarks.parts.served_model import Bare


def build(checkpoint_dir: str) -> FastAPI:
    """The application."""
    bare = Bare(checkpoint_dir)
    api = FastAPI()

    def answer(photo: bytes) -> dict[str, Any]:
        return bare.count([bare.decode(photo)])[0]

    @api.post("/count")
    async def count(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answer, await request.body())

    return api


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
