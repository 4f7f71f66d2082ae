"""What a server is told: one value for both engines, the command line, and Ray Serve's config file."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from bintally.errors import ConfigError
from bintally.source_config import DataConfig

DEFAULT_MODEL: Final = "default"
RuntimeChoice = Literal["auto", "onnx_int8", "onnx_fp32", "eager"]
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_VERSION: Final = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What to serve, and its limits."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    checkpoint: str
    """The checkpoint that answers: a folder or s3://bucket/prefix; with @VERSION behind it, no other weights."""
    models: dict[str, str] = field(default_factory=dict)
    """Further checkpoints by name, each as `checkpoint`; a request asks for one by ?model=NAME."""
    canary: str | None = None
    """The model of these that answers a share of the requests which name none."""
    canary_share: float = 0.0
    """That share, 0..1."""
    shadow: str | None = None
    """The model of these that counts what the first one counted, for the metrics alone."""
    runtime: RuntimeChoice = "auto"
    """What computes: auto takes what train/accelerate.py chose, else the network as it was trained."""
    max_batch_size: int = 8
    """Photos in one forward pass, at most."""
    batch_wait_s: float = 0.0
    """How long a photo waits for others; a CPU core gains nothing by it, a GPU does by some 0.005."""
    max_in_flight: int = 64
    """Photos that are decoded, wait or are counted; more are told to come back (503)."""
    request_timeout_s: float = 10.0
    """A request is answered within so many seconds of its body, or 504; a client may ask for less."""
    body_timeout_s: float = 10.0
    """A body must have arrived after so many seconds."""
    max_body_bytes: int = 10_000_000
    """Of one photo; the body of several may hold ten times as much."""
    audit_source: str | None = None
    """Bucket whose photos POST /v1/audit counts, s3://bucket[/prefix] or file:///folder; None turns it off. Its
    region is AWS_REGION of the environment, or us-east-1."""
    audit_endpoint_url: str | None = None
    """Another S3 server than AWS."""
    audit_signed: bool = False
    """Sign its requests with the AWS credentials of the environment."""
    token_file: str | None = None
    """File with a bearer token per line, any of which opens /v1 and /metrics; None asks for none."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the API; read at the start alone."""
    generation: int = 0
    """Another number has running replicas read checkpoints and tokens again of which only the contents have changed.
    serve/start.py counts by itself, at each SIGHUP."""

    def __post_init__(self) -> None:
        for name, location in self.locations.items():
            if not _NAME.fullmatch(name):
                raise ConfigError(f"models: {name!r} is no name; use small letters, digits and . _ - ")
            split_location(location)
        for role in ("canary", "shadow"):
            if getattr(self, role) not in (None, *self.models):
                raise ConfigError(f"{role} must be one of models, {sorted(self.models)}, not {getattr(self, role)!r}")
        if not 0 <= self.canary_share <= 1:
            raise ConfigError(f"canary_share must lie in 0..1, not {self.canary_share}")
        for limit in ("max_batch_size", "max_in_flight", "request_timeout_s", "body_timeout_s", "max_body_bytes"):
            if not 0 < getattr(self, limit) < math.inf:
                raise ConfigError(f"{limit} must be above 0, not {getattr(self, limit)}")
        if not 0 <= self.batch_wait_s < math.inf:
            raise ConfigError(f"batch_wait_s must be 0 or more, not {self.batch_wait_s}")
        if DEFAULT_MODEL in self.models:
            raise ConfigError(f"models: {DEFAULT_MODEL!r} is the name of `checkpoint`")
        self._check_audit()

    def _check_audit(self) -> None:
        try:
            DataConfig(source=self.audit_source or "file:///", endpoint_url=self.audit_endpoint_url)
        except ConfigError as error:
            raise ConfigError(f"audit_{error}") from None  # of the same fields under other names

    @property
    def locations(self) -> dict[str, str]:
        """Where each model lies, by name."""
        return {DEFAULT_MODEL: self.checkpoint} | self.models


_Settings = TypeVar("_Settings", bound=Settings)


def split_location(location: str) -> tuple[str, str | None]:
    """A location without its @VERSION, and the version.

    Raises:
        ConfigError: what follows the @ is no version.
    """
    place, at, version = location.rpartition("@")
    if not at or "/" in version:
        return location, None
    if not _VERSION.fullmatch(version):
        raise ConfigError(f"{location}: a version is 6 to 64 hex digits of the weights' SHA-256, not {version!r}")
    return place, version


def settings_from_dict(values: dict[str, object]) -> Settings:
    """Settings of a config file.

    Raises:
        ConfigError: a value is wrong or unknown; the message names it.
    """
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from None


def with_absolute_paths(settings: _Settings) -> _Settings:
    """The same settings for processes with another working folder; relative paths are taken from that of this one."""
    return replace(
        settings,
        checkpoint=_absolute(settings.checkpoint),
        models={name: _absolute(place) for name, place in settings.models.items()},
        token_file=None if settings.token_file is None else _absolute(settings.token_file),
    )


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).expanduser().absolute())


def read_tokens(token_file: str | None) -> tuple[str, ...]:
    """The tokens of a file; none if there is no file to read.

    Raises:
        ConfigError: the file cannot be read, or holds no token.
    """
    if token_file is None:
        return ()
    try:
        tokens = tuple(line.strip() for line in Path(token_file).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file {token_file} cannot be read: {error}") from None
    if not tokens:
        raise ConfigError(f"token_file {token_file} holds no token; write one per line, or leave token_file out")
    return tokens
