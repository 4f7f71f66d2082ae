"""Photos to an endpoint: one request, and the check that a new endpoint really counts."""

import io
import json
import math
import time
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image, ImageDraw

from bintally.errors import AwsError
from serve.aws.calls import Aws

STARTING: Final = (
    *("ModelNotReadyException", "InternalFailure", "ServiceUnavailable", "ThrottlingException"),
    *("ReadTimeoutError", "ConnectionClosedError"),
)
"""What SageMaker, or nobody, says while a server starts."""


def ask(aws: Aws, name: str, photo: bytes, expected_quantity: int | None = None) -> dict[str, Any]:
    """What an endpoint says of a photo; empty in a dry run.

    Raises:
        AwsError: the endpoint refuses or cannot be reached, or its answer is no JSON object.
    """
    record = {} if expected_quantity is None else {"CustomAttributes": f"expected_quantity={expected_quantity}"}
    body = aws.read(
        "sagemaker-runtime",
        "invoke_endpoint",
        EndpointName=name,
        ContentType="application/x-image",
        Accept="application/json",
        Body=photo,
        **record,
    )
    try:
        answer = json.loads(body)
    except ValueError:
        raise AwsError(f"endpoint {name} answers with what is no JSON") from None
    if not isinstance(answer, dict):
        raise AwsError(f"endpoint {name} answers with JSON that is no object")
    return answer


def smoke(aws: Aws, name: str, version: str, patience_s: float) -> None:
    """Let an endpoint count a drawn photo, and check its answer.

    SageMaker says InService once /ping is answered, which AWS's images do before the model is loaded, and also when it
    never will be. So what a server that is still starting says is heard again until the patience ends.

    Args:
        aws: where.
        name: of the endpoint.
        version: of the model that has to answer.
        patience_s: how long failures of the server are forgiven.

    Raises:
        AwsError: no answer, or a wrong one.
    """
    begun = time.monotonic()
    while True:
        try:
            answer = ask(aws, name, draw_photo())
            break
        except AwsError as error:
            if not _may_be_starting(error) or time.monotonic() - begun + aws.poll_s > patience_s:
                raise AwsError(f"endpoint {name} does not count: {error}") from None
            aws.say(f"endpoint {name} does not count yet: {error}")
            time.sleep(aws.poll_s)
    if aws.is_dry:
        return
    if wrong := find_fault(answer, version):
        raise AwsError(f"endpoint {name} answers a drawn photo wrongly: {wrong}")
    aws.say(f"endpoint {name} counts: {answer['count']} items in a drawn photo, by model {version}")


def _may_be_starting(error: AwsError) -> bool:
    if error.code == "ModelError":
        return error.model_status is None or not 400 <= error.model_status < 500
    return error.code in STARTING


def find_fault(answer: Mapping[str, Any], version: str) -> str | None:
    """What is wrong with the answer to a photo of which a count is all that is known; None if nothing is."""
    count, probabilities, model = (answer.get(field) for field in ("count", "probabilities", "model"))
    if not isinstance(count, int) or not isinstance(probabilities, dict) or not isinstance(model, dict):
        return f"it has no count, probabilities and model, but {', '.join(answer) or 'nothing'}"
    values = list(probabilities.values())
    if not all(isinstance(p, float | int) and 0 <= p <= 1 for p in values) or not math.isclose(
        math.fsum(values), 1, abs_tol=1e-3
    ):
        return f"its probabilities are none: {probabilities}"
    if probabilities.get(str(count)) != max(values):
        return f"its count {count} is not the most probable of {probabilities}"
    if model.get("version") != version:
        return f"model {model.get('version')} answers, not {version}"
    return None


def draw_photo() -> bytes:
    """A JPEG of a bin with two boxes."""
    image = Image.new("RGB", (320, 240), (135, 115, 92))  # the mean colour of ABID
    pen = ImageDraw.Draw(image)
    pen.rectangle((40, 90, 150, 210), fill=(196, 150, 90), outline=(70, 50, 30), width=4)
    pen.rectangle((180, 130, 280, 210), fill=(60, 90, 150), outline=(20, 30, 60), width=4)
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()
