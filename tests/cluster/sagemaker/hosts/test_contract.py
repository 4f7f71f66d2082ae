"""One contract and one answer, whatever the host; and what AWS's Ray Serve image says while it loads."""

import base64
import io
import json
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.cluster

Host = Any  # of conftest.py
RayImage = Any
MAX_BODY_BYTES = 300_000
ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"

FUNCTIONS = """
import base64, importlib.util, json, sys
import inference

class Context:  # as AWS's toolkit gives it
    status = 200
    request_processor = property(lambda self: [self])

    def get_request_properties(self):
        return {"Content-Type": content_type, "X-Amzn-SageMaker-Custom-Attributes": attributes}

    def set_response_status(self, code, phrase):
        self.status = code

print(json.dumps([importlib.util.find_spec(name) is None for name in ("data", "train", "tune", "serve.service")]))
model = inference.model_fn(sys.argv[1])
for body, content_type, accept, attributes in json.load(sys.stdin):
    context = Context()
    asked = inference.input_fn(bytearray(base64.b64decode(body)), content_type, context)
    answer, answer_type = inference.output_fn(inference.predict_fn(asked, model), accept, context)
    print(json.dumps([context.status, answer_type, base64.b64encode(answer).decode()]))
"""


def make_photo(format_name: str = "JPEG", *, seed: int = 0, size: tuple[int, int] = (80, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, format_name)
    return file.getvalue()


def as_json(photo: bytes, **fields: object) -> bytes:
    return json.dumps({"image": base64.b64encode(photo).decode(), **fields}).encode()


PHOTO = make_photo()
LINES = as_json(PHOTO, bin_id="A7") + b"\n" + b"no json\n\n" + as_json(b"no photo") + b"\n" + as_json(PHOTO)
INSTANCES = b'{"instances": [%s, {"image": "%s"}, 7]}' % (as_json(PHOTO, expected_quantity=2), b"?")


def ask_functions(
    requests: list[tuple[bytes, str, str, str]], model: Path, python: Path, variables: dict[str, str], folder: Path
) -> list[tuple[int, str, bytes]]:
    """Answers of code/inference.py, the interface of AWS's PyTorch image: status, media type, body."""
    asked = [[base64.b64encode(body).decode(), *others] for body, *others in requests]
    done = subprocess.run(
        [python, "-c", FUNCTIONS, str(model)],
        cwd=folder,
        env=variables,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    absent, *answers = map(json.loads, done.stdout.splitlines())
    assert absent == [True] * 4, "the repository is within reach"
    return [(status, media_type, base64.b64decode(body)) for status, media_type, body in answers]


# --- One answer -----------------------------------------------------------------------------------------------------


def test_every_host_gives_the_same_bytes_and_the_server_the_same_numbers(
    container: Host,
    ray_image: RayImage,
    local_server: Callable[..., str],
    packed_model: Path,
    python: Path,
    out_of_reach: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    photos = [make_photo(seed=seed) for seed in range(3)]
    photos += [make_photo("PNG", seed=4), make_photo(seed=5, size=(640, 520)), make_photo(seed=6, size=(20, 400))]
    asked = [(photo, "application/x-image", "application/json", "expected_quantity=2") for photo in photos]
    asked += [(LINES, "application/jsonlines", "*/*", ""), (PHOTO, "image/jpeg", "text/csv", "")]
    asked += [(b"no photo", "image/jpeg", "*/*", ""), (b"{", "application/json", "*/*", "")]
    asked += [(PHOTO, "text/csv", "*/*", "")]
    answers = ask_functions(asked, packed_model, python, out_of_reach(packed_model / "code"), tmp_path)
    assert [status for status, _, _ in answers] == [200] * 7 + [406, 415, 400, 415]
    for (body, kind, accept, attributes), answer in zip(asked, answers, strict=True):
        for one in (container, ray_image.host):
            reply = one.invoke(body, kind, **{"Accept": accept, ATTRIBUTES: attributes})
            assert (reply.status, reply.media_type, reply.body) == answer
    server = httpx.Client(base_url=local_server(), headers={"Content-Type": "application/octet-stream"})
    for photo, (_, _, body) in zip(photos, answers, strict=False):
        verified = server.post("/v1/verify?expected_quantity=2", content=photo).json()
        counted = verified.pop("counted")
        del counted["timing"], counted["request_id"]
        assert json.loads(body) == counted | verified
    assert len({body for _, _, body in answers}) == len(answers)


# --- One contract ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image/jpeg", "image/png", "application/x-image", "application/octet-stream"])
@pytest.mark.parametrize("accept", ["application/json", "*/*", "text/html, application/json;q=0.5"])
def test_a_photo_has_a_count(host: Host, kind: str, accept: str) -> None:
    reply = host.invoke(PHOTO, f"{kind}; charset=binary", Accept=accept)
    answer = reply.json
    assert (reply.status, reply.media_type) == (200, "application/json")
    assert answer.keys() == {"count", "probabilities", "expected_value", "range", "photo", "model"}
    assert answer["probabilities"][str(answer["count"])] == max(answer["probabilities"].values())


def test_json_of_one_photo_has_the_same_answer(host: Host) -> None:
    alone = host.invoke(PHOTO)
    assert host.invoke(as_json(PHOTO), "application/json").body == alone.body
    as_line = host.invoke(PHOTO, Accept="application/jsonlines")
    assert (as_line.media_type, as_line.body) == ("application/jsonlines", alone.body + b"\n")


@pytest.mark.parametrize("way", ["json", "attributes", "json wins"])
def test_an_expected_quantity_has_a_verdict(host: Host, way: str) -> None:
    attributes = (
        {} if way == "json" else {ATTRIBUTES: "trace=7, expected_quantity=" + ("2" if way == "attributes" else "4")}
    )
    fields = {"bin_id": "A7"} if way == "attributes" else {"bin_id": "A7", "expected_quantity": 2}
    answer = host.invoke(as_json(PHOTO, **fields), "application/json", **attributes).json
    assert (answer["expected_quantity"], answer["bin_id"]) == (2, "A7")
    assert answer["p_match"] == answer["probabilities"]["2"]
    assert answer["verdict"] in {"match", "mismatch", "review"}
    assert answer["explanation"]


@pytest.mark.parametrize("accept", [None, "application/jsonlines", "application/json"])
def test_lines_have_lines_and_a_wrong_one_harms_no_other(host: Host, accept: str | None) -> None:
    reply = host.invoke(LINES, "application/jsonlines", **({"Accept": accept} if accept else {}))
    rows = [json.loads(line) for line in reply.body.splitlines()]
    assert (reply.status, reply.media_type) == (200, "application/jsonlines")
    assert reply.body.endswith(b"\n")
    codes = [row.get("problem", {}).get("code") for row in rows]
    assert codes == [None, "invalid_json", "not_an_image", None]
    assert rows[0] == host.invoke(PHOTO).json | {"bin_id": "A7"}
    assert rows[2]["problem"].keys() == {"type", "title", "status", "detail", "code"}


def test_instances_have_predictions(host: Host) -> None:
    reply = host.invoke(INSTANCES, "application/json")
    first, second, third = reply.json["predictions"]
    assert (reply.status, first["expected_quantity"]) == (200, 2)
    assert [one["problem"]["code"] for one in (second, third)] == ["invalid_request"] * 2


@pytest.mark.parametrize(
    ("status", "code", "body", "kind", "headers"),
    [
        (400, "empty_body", b"", "image/jpeg", {}),
        (400, "empty_body", b"\n\n", "application/jsonlines", {}),
        (400, "truncated_image", PHOTO[:-300], "image/jpeg", {}),
        (400, "invalid_json", b'{"image": ', "application/json", {}),
        (422, "invalid_request", b'{"photo": ""}', "application/json", {}),
        (422, "invalid_request", b'{"image": "not base64!"}', "application/json", {}),
        (422, "invalid_request", b'{"instances": []}', "application/json", {}),
        (422, "invalid_request", as_json(PHOTO, expected_quantity=-1), "application/json", {}),
        (422, "invalid_request", PHOTO, "image/jpeg", {ATTRIBUTES: "expected_quantity=three"}),
        (406, "not_acceptable", PHOTO, "image/jpeg", {"Accept": "text/csv"}),
        (413, "body_too_large", bytes(MAX_BODY_BYTES + 1), "image/jpeg", {}),
        (413, "absurd_dimensions", make_photo("PNG", size=(8, 8)), "image/png", {}),
        (415, "not_an_image", b"no photo", "image/jpeg", {}),
        (415, "unsupported_media_type", PHOTO, "text/csv", {}),
        (415, "unsupported_media_type", PHOTO, "multipart/form-data; boundary=x", {}),
    ],
)
def test_a_wrong_request_has_a_problem(
    host: Host, status: int, code: str, body: bytes, kind: str, headers: dict[str, str]
) -> None:
    reply = host.invoke(body, kind, **headers)
    problem = reply.json
    assert (reply.status, problem["code"], problem["status"]) == (status, code, status)
    assert reply.media_type == "application/problem+json"
    assert problem.keys() == {"type", "title", "status", "detail", "code"}
    assert "Traceback" not in problem["detail"]


def test_the_largest_body_is_taken(host: Host) -> None:
    assert host.invoke(PHOTO.ljust(MAX_BODY_BYTES, b"\0")).status == 200


def test_requests_at_the_same_time_have_the_answers_that_they_have_alone(host: Host) -> None:
    photos = [make_photo(seed=seed) for seed in range(12)]
    with ThreadPoolExecutor(len(photos)) as pool:
        together = [reply.body for reply in pool.map(host.invoke, photos)]
    assert together == [host.invoke(photo).body for photo in photos]
    assert len(set(together)) == len(photos)


def test_ping_says_nothing_but_its_status(host: Host) -> None:
    reply = host.ask("GET", "/ping")
    assert (reply.status, reply.body) == (200, b"")


def test_other_paths_and_methods_are_refused(container: Host) -> None:
    assert container.ask("GET", "/invocations").json["code"] == "method_not_allowed"
    assert container.ask("GET", "/models").json["code"] == "not_found"


def test_a_replica_that_loads_is_not_ready_though_rays_proxy_is(ray_image: RayImage) -> None:
    assert ray_image.early_ping == 503
    assert ray_image.host.status() == 200
