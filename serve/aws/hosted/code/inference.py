"""The four functions of AWS's PyTorch image, for whoever still runs it; its own support ended in June 2026.

What is wrong with a request is told at the end, by the status and body of the answer: AWS's toolkit would send the
traceback of an exception to the client. Called without its context, output_fn raises.
"""

from http import HTTPStatus
from pathlib import Path
from typing import Any

from bintally.errors import CheckpointError, ImageError
from serve.container import invocation
from serve.container.invocation import ATTRIBUTES, Counts, Invocation
from serve.predictor import Predictor
from serve.problems import MEDIA_TYPE, Refusal, refusal_of


def model_fn(model_dir: str) -> Predictor:
    """The model of the unpacked tarball, which has counted a photo.

    Raises:
        CheckpointError: it is missing or damaged, or gives no probabilities.
    """
    return invocation.load_model(Path(model_dir))


def input_fn(
    body: bytes | bytearray | str,
    content_type: str,
    context: Any = None,  # noqa: ANN401  # the toolkit's, which is not here
) -> Invocation | Refusal:
    """What a request asks for, or what is wrong with it.

    Args:
        body: of the request; AWS's toolkit makes text of JSON.
        content_type: of the body.
        context: has the headers, of which the custom attributes are read.
    """
    headers = context.request_processor[0].get_request_properties() if context is not None else {}
    attributes = {name.lower(): value for name, value in headers.items()}.get(ATTRIBUTES, "")
    data = body.encode() if isinstance(body, str) else bytes(body)
    try:
        return invocation.read(data, invocation.media_type_of(content_type), attributes)
    except Refusal as refusal:
        return refusal


def predict_fn(asked: Invocation | Refusal, model: Predictor) -> Counts | Refusal:
    """Count the photos, or tell why the one that was sent has no count."""
    if isinstance(asked, Refusal):
        return asked
    try:
        return invocation.count(model, asked)
    except (ImageError, CheckpointError, Refusal) as error:
        return refusal_of(error)


def output_fn(counts: Counts | Refusal, accept: str, context: Any = None) -> tuple[bytes, str]:  # noqa: ANN401  # as above
    """The body of the answer, and its media type.

    Raises:
        Refusal: something is wrong with the request, and there is no context to tell it by.
    """
    try:
        if isinstance(counts, Refusal):
            raise counts
        answer_type = invocation.answer_type_of(counts.invocation.media_type, accept)
        return invocation.write(counts, answer_type), answer_type
    except Refusal as refusal:
        if context is None:
            raise
        context.set_response_status(refusal.status_code, HTTPStatus(refusal.status_code).phrase)
        return invocation.dump(invocation.problem_body(refusal)), MEDIA_TYPE
