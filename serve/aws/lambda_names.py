"""Names of what is made for an endpoint, by which it is told from what others made; for Lambdas, too."""

import re


def is_ours(resource: str, name: str) -> bool:
    """Whether `export.py deploy` made a model or configuration for the endpoint of this name."""
    return re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", resource) is not None


def is_of_execution(resource: str, name: str) -> bool:
    """Whether the state machine did."""
    return re.fullmatch(rf"{re.escape(name)}-sm[0-9a-f]{{12}}", resource) is not None


def is_of_either(resource: str, name: str) -> bool:
    """Whether one of them did."""
    return is_ours(resource, name) or is_of_execution(resource, name)
