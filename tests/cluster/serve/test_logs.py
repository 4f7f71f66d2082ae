"""What a replica of Ray Serve writes down."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private.logging_utils import get_serve_logs_dir

pytestmark = pytest.mark.cluster


def test_a_request_is_a_line_of_json_once_it_is_answered(serving_ray: Any) -> None:  # noqa: ANN401  # of conftest.py
    answer = serving_ray.server.get("/v1/model", X_Request_ID="told")
    assert answer.status == 200
    until = time.monotonic() + 30
    while not (told := lines_on("told")) and time.monotonic() < until:  # Serve's own log holds lines back for longer
        time.sleep(0.1)
    (line,) = told
    assert (line["logger"], line["route"], line["status"]) == ("bintally.access", "/v1/model", 200)


def lines_on(request_id: str) -> list[dict[str, Any]]:
    lines = [line for path in Path(get_serve_logs_dir()).glob("bintally_*.jsonl") for line in path.open()]
    return [one for one in map(json.loads, lines) if one.get("request_id") == request_id]
