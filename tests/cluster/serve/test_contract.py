"""What the API promises, the same of both engines."""

import json
import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bintally.checkpoint import load_checkpoint
from bintally.image import decode_photo
from serve.aws.bundle import pack
from serve.front_problems import PROBLEMS
from serve.problems import STATUS_OF

pytestmark = pytest.mark.cluster

MakePhoto = Callable[..., bytes]
Server = Any  # of conftest.py
Array = np.ndarray


def expected_of(server: Server, photo: bytes) -> Array:
    """The calibrated probabilities by the core alone."""
    checkpoint = load_checkpoint(server.checkpoint)
    calibration = checkpoint.calibration
    assert calibration is not None
    calibrated: Array = calibration.apply(checkpoint.predict(decode_photo(photo, checkpoint.recipe.data.pixels)[None]))
    return calibrated


# --- Counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["jpeg", "octets", "png", "form", "json", "chunked"])
def test_numbers_equal_the_core_whatever_the_way(server: Server, make_photo: MakePhoto, way: str) -> None:
    photo = make_photo("PNG" if way == "png" else "JPEG")
    reply = {
        "jpeg": lambda: server.post(photo),
        "octets": lambda: server.post(photo, "application/octet-stream"),
        "png": lambda: server.post(photo, "image/png"),
        "form": lambda: server.post_form("/v1/count", photo),
        "json": lambda: server.post_json("/v1/count", image=photo),
        "chunked": lambda: server.post(iter([photo[:500], photo[500:]])),
    }[way]()
    answer, (expected,) = reply.json, expected_of(server, photo)
    assert reply.status == 200, reply.body
    assert answer["probabilities"] == {str(count): p for count, p in enumerate(expected.tolist())}
    assert answer["count"] == int(expected.argmax())
    assert answer["expected_value"] == pytest.approx(float(expected @ np.arange(len(expected))))
    assert answer["request_id"] == reply.headers["x-request-id"]
    assert (answer["photo"]["width"], answer["photo"]["height"]) == (80, 64)
    assert answer["model"]["version"] == load_checkpoint(server.checkpoint).version
    assert answer["timing"].keys() == {"decode_ms", "count_ms"}


def test_the_tarball_for_sagemaker_answers_exactly_alike(
    server: Server, make_photo: MakePhoto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By code/inference.py, whose bytes tests/cluster/sagemaker/hosts compares with those of all hosts."""
    with tarfile.open(pack(server.checkpoint, tmp_path / "model.tar.gz").path) as tar:
        tar.extractall(tmp_path / "model", filter="data")
    monkeypatch.syspath_prepend(tmp_path / "model/code")
    inference, num_threads = import_module("inference"), torch.get_num_threads()
    model = inference.model_fn(str(tmp_path / "model"))
    torch.set_num_threads(num_threads)  # a container's are its own business
    for photo in (make_photo(), make_photo("PNG"), make_photo(seed=2)):
        counts = inference.predict_fn(inference.input_fn(photo, "application/x-image"), model)
        body, _ = inference.output_fn(counts, "application/json")
        answer = server.post(photo, "application/octet-stream").json
        del answer["timing"], answer["request_id"]
        assert json.loads(body) == answer


def test_the_range_is_that_of_the_checkpoint(server: Server, make_photo: MakePhoto) -> None:
    calibration = load_checkpoint(server.checkpoint).calibration
    assert calibration is not None
    for seed in range(5):
        photo = make_photo(seed=seed)
        (low,), (high,) = calibration.ranges(expected_of(server, photo), "0.9")
        assert server.post(photo).json["range"] == {"low": low, "high": high, "coverage": 0.9}


def test_several_photos_of_which_some_are_none(server: Server, make_photo: MakePhoto) -> None:
    photos = [make_photo(), b"no photo", make_photo(seed=1)[:-300], make_photo(seed=2), b""]
    for reply in (server.post_form("/v1/count:batch", *photos), server.post_json("/v1/count:batch", images=photos)):
        answer = reply.json
        assert reply.status == 200
        assert (answer["num_counted"], answer["num_failed"]) == (2, 3)
        assert [item["index"] for item in answer["items"]] == [0, 1, 2, 3, 4]
        codes = [item["problem"] and item["problem"]["code"] for item in answer["items"]]
        assert codes == [None, "not_an_image", "truncated_image", None, "empty_body"]
        alone = server.post(photos[3]).json["probabilities"]
        assert answer["items"][3]["counted"]["probabilities"] == pytest.approx(alone, abs=1e-5)


def test_a_poison_photo_harms_no_other(server: Server, make_photo: MakePhoto) -> None:
    photos = [make_photo(seed=seed) for seed in range(23)]
    alone = [server.post(photo).json for photo in photos[:3]]
    photos.insert(11, make_photo()[:-300])
    with ThreadPoolExecutor(len(photos)) as pool:
        replies = list(pool.map(server.post, photos))
    assert [reply.status for reply in replies] == [200] * 11 + [400] + [200] * 12
    for together, expected in zip(replies[:3], alone, strict=True):
        assert together.json["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


# --- Verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["query", "form", "json"])
def test_a_record_is_verified(server: Server, make_photo: MakePhoto, way: str) -> None:
    photo = make_photo(seed=3)
    (expected,) = expected_of(server, photo)
    for quantity, p_match in enumerate(expected.tolist()):
        reply = {
            "query": lambda q=quantity: server.post(photo, path=f"/v1/verify?expected_quantity={q}&bin_id=A7"),
            "form": lambda q=quantity: server.post_form("/v1/verify", photo, expected_quantity=str(q), bin_id="A7"),
            "json": lambda q=quantity: server.post_json("/v1/verify", image=photo, expected_quantity=q, bin_id="A7"),
        }[way]()
        answer = reply.json
        assert reply.status == 200, reply.body
        assert (answer["expected_quantity"], answer["bin_id"]) == (quantity, "A7")
        assert answer["p_match"] == pytest.approx(p_match)
        assert answer["thresholds"] == {"mismatch": 0.1, "match": 0.3}
        assert answer["verdict"] == ("mismatch" if p_match < 0.1 else "match" if p_match > 0.3 else "review")
        assert answer["counted"]["count"] == int(expected.argmax())


def test_more_than_the_model_counts_is_for_people(server: Server, make_photo: MakePhoto) -> None:
    answer = server.post(make_photo(), path="/v1/verify?expected_quantity=40").json
    assert (answer["verdict"], answer["p_match"]) == ("review", None)


# --- The page -------------------------------------------------------------------------------------------------------


def test_the_page_and_its_parts_are_served(server: Server) -> None:
    page = server.get("/")
    parts = re.findall(r'(?:src|href)="(page/[^"]+)"', page.body.decode())
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "/": "text/html"}
    assert len(parts) >= 3
    for path in ("/", *(f"/{part}" for part in parts)):
        reply = server.get(path)
        assert reply.headers["content-type"].split(";")[0] == kinds[path.rpartition(".")[2]]
        assert reply.headers["content-security-policy"].startswith("default-src 'none';")
        again = server.get(path, If_None_Match=reply.headers["etag"])
        assert (reply.status, again.status, again.body) == (200, 304, b"")


# --- The server -----------------------------------------------------------------------------------------------------


def test_models_by_name(server: Server, make_photo: MakePhoto) -> None:
    version = load_checkpoint(server.checkpoint).version
    assert [model["name"] for model in server.get("/v1/models").json["models"]] == ["default", "second"]
    assert server.post(make_photo(), path="/v1/count?model=second").json["model"]["name"] == "second"
    card = server.get("/v1/model?model=second").json
    assert (card["version"], card["max_count"]) == (version, 5)
    assert card["calibration"]["temperature"] == 0.02
    unknown = server.post(make_photo(), path="/v1/count?model=third")
    assert (unknown.status, unknown.code) == (404, "unknown_model")


def test_health_and_readiness(server: Server) -> None:
    version = load_checkpoint(server.checkpoint).version
    assert server.get("/healthz").json == {"status": "ok"}
    ready = server.get("/readyz")
    assert (ready.status, ready.json["model"]["version"]) == (200, version)


def test_metrics_count_what_happens(server: Server, make_photo: MakePhoto) -> None:
    def figure(name: str) -> float:
        lines = server.get("/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = (
        "bintally_photos_counted_total{",
        'bintally_refused_total{code="not_an_image"',
        "bintally_batch_photos_sum",
    )
    before = [figure(name) for name in names]
    for _ in range(3):
        assert server.post(make_photo()).status == 200
    server.post(b"no photo")
    assert [round(figure(name) - old) for name, old in zip(names, before, strict=True)] == [3, 1, 3]
    assert figure("bintally_photos_in_flight") == 0


def test_a_request_keeps_its_id(server: Server, make_photo: MakePhoto) -> None:
    assert server.post(make_photo(), X_Request_ID="bin-42.a").json["request_id"] == "bin-42.a"
    odd = server.post(make_photo(), X_Request_ID='a b"c').json["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", odd)


def test_openapi_is_true_of_the_routes(server: Server) -> None:
    spec = server.get("/openapi.json").json
    assert {"/v1/count", "/v1/count:batch", "/v1/verify", "/v1/model", "/healthz", "/readyz", "/metrics"} <= set(
        spec["paths"]
    )
    kinds = set(spec["paths"]["/v1/count"]["post"]["requestBody"]["content"])
    assert kinds == {"image/jpeg", "image/png", "application/octet-stream", "multipart/form-data", "application/json"}
    assert "Problem" in spec["components"]["schemas"]
    told = {int(status) for path in spec["paths"].values() for one in path.values() for status in one["responses"]}
    assert told - {200} <= set(STATUS_OF.values()) | set(PROBLEMS)
    json.dumps(spec)
