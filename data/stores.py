"""The obstore clients of a config: where the objects lie, how patiently they are asked for, and as whom."""

from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from obstore.store import LocalStore, S3Store

from bintally.errors import ConfigError, SourceNotFoundError
from bintally.source_config import DataConfig

# While streaming, patience is cheap; at the start a typo should not cost a minute.
STREAM_RETRIES: Final = 40  # more than fit into GIVE_UP_S
LISTING_RETRIES: Final = 5

# S3 sends its first byte within some 100 ms. Silence of this length, before or within a body, is a stall, and asking
# again is quicker than waiting; the whole of a request may take longer on a slow line.
READ_TIMEOUT_S: Final = 4.0
REQUEST_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0

# obstore draws each pause between the first and GROWTH times the one before. By a factor of 2 they do not grow: ten
# retries were over within 3 s.
FIRST_WAIT_S: Final = 0.1
MAX_WAIT_S: Final = 15.0
GROWTH: Final = 4
GIVE_UP_S: Final = 120.0  # after the first request, whatever the number of retries


def open_folder(source: str) -> LocalStore:
    """A folder as a store.

    Raises:
        SourceNotFoundError: it does not exist.
    """
    folder = Path(unquote(source.removeprefix("file://")))  # not urlsplit: # and ? are part of a folder's name
    if not folder.is_dir():
        raise SourceNotFoundError(f"{source}: there is no folder {folder}")
    return LocalStore(folder)


def open_s3(data: DataConfig, *, max_retries: int, max_wait_s: float, read_timeout_s: float) -> S3Store:
    """A client of S3, or of a server that speaks as it does.

    Raises:
        ConfigError: requests are to be signed, and there are no credentials.
    """
    name, _, prefix = data.source.removeprefix("s3://").partition("/")
    return S3Store(
        name,
        prefix=prefix.strip("/") or None,
        region=data.region,
        config={"endpoint": data.endpoint_url} if data.endpoint_url else {},  # obstore refuses None as an endpoint
        skip_signature=not data.signed,
        credential_provider=_find_credentials() if data.signed else None,
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=read_timeout_s),
            "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
        },
        retry_config={
            "max_retries": max_retries,
            "retry_timeout": timedelta(seconds=GIVE_UP_S),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_WAIT_S),
                "max_backoff": timedelta(seconds=max_wait_s),
                "base": GROWTH,
            },
        },
    )


def _find_credentials() -> Any:  # noqa: ANN401  # mypy knows the class only with boto3's stubs
    """What boto3 finds: environment, profile, SSO, web identity, instance role; renewed as they expire."""
    from obstore.auth.boto3 import Boto3CredentialProvider  # 0.3 s that anonymous readers need not pay

    try:
        return Boto3CredentialProvider()
    except ValueError:
        raise ConfigError("signed needs AWS credentials, and boto3 finds none in the environment") from None
