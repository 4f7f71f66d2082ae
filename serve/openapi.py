"""What the OpenAPI document says of all routes: the token, and what the front answers by itself."""

from typing import Any, Final

from fastapi import FastAPI

from serve.front_problems import PROBLEMS
from serve.middleware import is_open
from serve.problems import MEDIA_TYPE
from serve.service import CounterService

FRONT_ALONE: Final = (429, 431, 502)
"""Statuses that come from the front; what else it answers, the server may answer, too."""


def describe_surroundings(api: FastAPI, service: CounterService) -> None:
    """Complete the document when it is asked for, since a reload may bring tokens or take them away."""
    routes_alone = api.openapi

    def openapi() -> dict[str, Any]:
        document = routes_alone()
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                for status in FRONT_ALONE:
                    operation["responses"].setdefault(str(status), _answer_of_front(status))
                if not is_open(path):
                    operation["security"] = [{"token": []}] if service.tokens else [{}, {"token": []}]
        return document

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend it


def _answer_of_front(status: int) -> dict[str, Any]:
    code, detail = PROBLEMS[status]
    return {
        "description": f"From the front: {code}, {detail}",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
