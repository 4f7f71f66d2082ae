"""The AWS Lambda of the state machine: is the new model better, does the endpoint count, clean up, and the way back.

It lies in the zip of serve/aws/lambda_handler.py and needs no environment. The names of the errors it raises stand in
the state machine: EndpointBusyError and NotReadyError are tried again, all others lead to the way back.
"""

import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from serve.aws.lambda_names import is_of_either

COMPARED: Final = ("source", "endpoint_url", "unpadded", "labels", "split_by", "max_count", "max_images")
"""Fields of a recipe's data that decide which bins the validation figures are of."""
MEASURED: Final = ("val_num_images", "val_ids")
"""Figures that say which photos they are of: how many, and a digest of their ids."""
NEEDED: Final = {"metrics.json", "config.json", "model.json"}
MOVING: Final = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}


class PipelineError(Exception):
    """A step cannot be done, now or later; the message names what to change."""


class EndpointBusyError(Exception):
    """SageMaker is changing the endpoint; ask again."""


class NotReadyError(Exception):
    """The endpoint does not count yet; ask again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What a model.tar.gz tells of its model."""

    url: str
    version: str
    metrics: Mapping[str, Any]
    data: Mapping[str, Any]
    """Which bins, of its recipe."""

    def figure(self, metric: str) -> float:
        """One of its metrics.

        Raises:
            PipelineError: it has no such number.
        """
        value = self.metrics.get(metric)
        if not isinstance(value, (int, float)):
            raise PipelineError(f"metrics.json in {self.url} has no {metric}, only {', '.join(self.metrics)}")
        return float(value)


@cache
def client_of(service: str) -> Any:  # noqa: ANN401  # boto3 makes its clients' types at run time
    """A client of an AWS service, the same for all calls."""
    make: Callable[..., Any] = boto3.client  # its overloads want the name as a literal
    return make(service, config=Config(connect_timeout=5, read_timeout=70, retries={"mode": "standard"}))


def handler(event: dict[str, Any], context: object) -> dict[str, Any]:  # noqa: ARG001  # the signature is Lambda's
    """Lambda calls this.

    Raises:
        PipelineError: a step cannot be done.
        EndpointBusyError: not now, for SageMaker is changing the endpoint.
        NotReadyError: not now, for the model is starting.
    """
    steps: dict[str, Callable[..., dict[str, Any]]] = {
        "gate": gate,
        "smoke": smoke,
        "clean_up": clean_up,
        "roll_back": roll_back,
    }
    told = steps[event["step"]](**event["with"])
    print(json.dumps({"level": "INFO", "step": event["step"], **told}))
    return told


def gate(model_url: str, endpoint: str, metric: str, min_gain: float) -> dict[str, Any]:
    """Whether a trained model is to be deployed: only if its metric beats that of the endpoint's model.

    Args:
        model_url: s3:// of the new model.tar.gz.
        endpoint: by name; it need not exist.
        metric: of metrics.json, as val_accuracy.
        min_gain: how much better the new model has to be, in the metric's unit.

    Raises:
        PipelineError: a figure is missing, or the endpoint cannot be updated.
        EndpointBusyError: somebody else is changing the endpoint.
    """
    new = read_artifact(model_url)
    figure = new.figure(metric)
    told = {"version": new.version, "exists": False, "config": ""}
    current = _describe(endpoint)
    if current is None:
        return told | {"deploy": True, "reason": f"there is no endpoint {endpoint} yet; {metric} is {figure:.4f}"}
    told |= {"exists": True, "config": current["EndpointConfigName"]}
    if current["EndpointStatus"] != "InService":
        raise PipelineError(f"endpoint {endpoint} is {current['EndpointStatus']}: delete it, and start again")
    old = read_artifact(_model_url(current["EndpointConfigName"]))
    differ = [name for name in COMPARED if new.data.get(name) != old.data.get(name)]
    differ += [name for name in MEASURED if len({new.metrics.get(name), old.metrics.get(name)} - {None}) > 1]
    if differ:
        return told | {"deploy": False, "reason": f"{metric} of both is of other bins: {', '.join(differ)} differ"}
    higher = metric.endswith(("accuracy", "within_one"))
    gain = figure - old.figure(metric) if higher else old.figure(metric) - figure
    compared = f"{metric} is {figure:.4f}, that of the endpoint's model {old.version} {old.figure(metric):.4f}"
    return told | {"deploy": gain > min_gain, "reason": compared}


def read_artifact(url: str) -> Artifact:
    """What a model.tar.gz on S3 tells of its model; no more of it is read than is needed.

    Raises:
        PipelineError: it is missing, or not one of ours.
    """
    place, found = urlsplit(url), dict[str, Any]()
    try:
        body = client_of("s3").get_object(Bucket=place.netloc, Key=place.path.lstrip("/"))["Body"]
        with tarfile.open(fileobj=body, mode="r|gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if name in NEEDED - found.keys() and (file := tar.extractfile(member)) is not None:
                    found[name] = json.load(file)
                if found.keys() == NEEDED:
                    break
        return Artifact(
            url=url,
            version=found["model.json"]["version"],
            metrics=found["metrics.json"],
            data=found["config.json"]["recipe"]["data"],
        )
    except (ClientError, BotoCoreError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{url} is no model of BinTally that can be read: {error!r}") from None


def smoke(endpoint: str, version: str) -> dict[str, Any]:
    """Let the endpoint count a drawn photo.

    Raises:
        PipelineError: it refuses, or its answer is wrong.
        NotReadyError: the server behind it fails or is too slow, as while it starts.
    """
    try:
        reply = client_of("sagemaker-runtime").invoke_endpoint(
            EndpointName=endpoint, ContentType="image/png", Accept="application/json", Body=draw_photo()
        )
        answer = json.loads(reply["Body"].read())
        count, total = answer["count"], sum(answer["probabilities"].values())
        counted_by = answer["model"]["version"]
    except ClientError as error:
        response: Mapping[str, Any] = error.response
        status = int(response.get("OriginalStatusCode", response["ResponseMetadata"]["HTTPStatusCode"]))
        is_refused = 400 <= status < 500 and status != 429 and "Throttl" not in response["Error"]["Code"]
        raise (PipelineError if is_refused else NotReadyError)(f"endpoint {endpoint} does not count: {error}") from None
    except BotoCoreError as error:
        raise NotReadyError(f"endpoint {endpoint} does not count: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"endpoint {endpoint} answers with what is no count: {error!r}") from None
    if counted_by != version:
        raise PipelineError(f"endpoint {endpoint} counts by model {counted_by}, not {version}")
    if abs(total - 1) > 1e-3:
        raise PipelineError(f"endpoint {endpoint} answers with probabilities that add up to {total}")
    return {"count": count, "version": version}


def draw_photo(size: int = 128) -> bytes:
    """A PNG with a bright square on a dark ground, without a library for images."""
    lit = range(size // 4, size * 3 // 4)
    rows = b"".join(b"\0" + bytes(220 if x in lit and y in lit else 40 for x in range(size)) for y in range(size))
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)  # 8 bits of grey
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def clean_up(endpoint: str, name: str, config: str) -> dict[str, Any]:
    """Delete the configuration that the endpoint had before, and its models; of those that BinTally made.

    Args:
        endpoint: by name; it serves the new model.
        name: of the new model and configuration.
        config: the former one; empty if there was none.
    """
    removed = []
    if is_of_either(config, endpoint) and config != name:
        models = [one for one in _models_of(config) if is_of_either(one, endpoint) and one != name]
        _delete("endpoint_config", EndpointConfigName=config)
        for model in models:
            _delete("model", ModelName=model)
        removed = [config, *models]
    return {"removed": removed}


def roll_back(endpoint: str, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo what an execution did to the endpoint; done again, it finds nothing to do.

    Args:
        endpoint: by name.
        name: of the model and the configuration that the execution may have made.
        state: of the execution; without a `gate`, it did not come so far as to change anything.

    Raises:
        EndpointBusyError: the endpoint is changing; what is left is done when it rests.
    """
    gate = state.get("gate")
    current = _describe(endpoint) if gate else None
    if gate and current and current["EndpointConfigName"] == name:
        if gate["exists"]:
            client_of("sagemaker").update_endpoint(EndpointName=endpoint, EndpointConfigName=gate["config"])
        else:
            client_of("sagemaker").delete_endpoint(EndpointName=endpoint)
        raise EndpointBusyError(f"endpoint {endpoint} goes back")
    _delete("endpoint_config", EndpointConfigName=name)
    _delete("model", ModelName=name)
    return {"removed": name}


def _describe(endpoint: str) -> dict[str, Any] | None:
    """The endpoint at rest; None if there is none.

    Raises:
        EndpointBusyError: it is changing.
    """
    try:
        current: dict[str, Any] = client_of("sagemaker").describe_endpoint(EndpointName=endpoint)
    except ClientError as error:
        if _is_missing(error):
            return None
        raise
    if current["EndpointStatus"] in MOVING:
        raise EndpointBusyError(f"endpoint {endpoint} is {current['EndpointStatus']}")
    return current


def _model_url(config: str) -> str:
    """s3:// of the model.tar.gz behind an endpoint configuration."""
    model = client_of("sagemaker").describe_model(ModelName=_models_of(config)[0])
    return str(model.get("PrimaryContainer", {}).get("ModelDataUrl", ""))


def _models_of(config: str) -> list[str]:
    variants = client_of("sagemaker").describe_endpoint_config(EndpointConfigName=config)["ProductionVariants"]
    return [one["ModelName"] for one in variants]


def _delete(kind: str, **name: str) -> None:
    try:
        getattr(client_of("sagemaker"), f"delete_{kind}")(**name)
    except ClientError as error:
        if not _is_missing(error):
            raise


def _is_missing(error: ClientError) -> bool:
    """SageMaker has no code of its own for what does not exist."""
    told = error.response["Error"]["Message"].lower()
    return "could not find" in told or "does not exist" in told
