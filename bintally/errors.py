"""Every error that BinTally raises on purpose.

BinTallyError
├── ConfigError (a ValueError)   a configuration value is wrong; the message names the field to change
├── SourceError                  the bucket cannot give what was asked of it
│   ├── SourceUnreachableError   no answer after bounded retries
│   ├── SourceNotFoundError      the bucket, folder or prefix does not exist or is empty
│   ├── AccessDeniedError        it exists, but these credentials may not read it
│   ├── NoUsableRowsError        every row was dropped; the message holds the drop table
│   └── TooManyFaultsError       more rows are lost to faults than --max-dropped allows
├── RowError                     one bin cannot be used; carries the drop reason
│   ├── LabelError               its metadata gives no count
│   └── ImageError               its bytes are no usable photo
├── WeightsError                 pretrained weights cannot be loaded
├── CheckpointError              a checkpoint folder is missing, damaged or does not fit
├── ExportError                  a network cannot be written as an ONNX graph, or not in 8 bits
├── ClusterTooSmallError         the cluster can never run what was asked for
├── ServerError                  a BinTally server refuses, or cannot be reached
├── AwsError                     AWS refuses a call, fails at it, or cannot be reached
│   └── AwsNotFoundError         what a call names is not there
└── RunError                     a training or search run ended without a result
"""


class BinTallyError(Exception):
    """Base of all errors that BinTally raises on purpose."""


class ConfigError(BinTallyError, ValueError):
    """A configuration value is wrong; the message names the field to change."""


class SourceError(BinTallyError):
    """The bucket cannot give what was asked of it."""


class SourceUnreachableError(SourceError):
    """No answer from the bucket after bounded retries."""


class SourceNotFoundError(SourceError):
    """The bucket, folder or prefix does not exist or holds no bins."""


class AccessDeniedError(SourceError):
    """The bucket exists, but these credentials may not read it."""


class NoUsableRowsError(SourceError):
    """Every row was dropped."""


class TooManyFaultsError(SourceError):
    """More rows are lost to faults than the user allows."""


class RowError(BinTallyError):
    """One bin cannot be used.

    Attributes:
        reason: why, as it stands in the drop table (`truncated_image`, `no_quantity`, ...).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LabelError(RowError):
    """The metadata of a bin gives no count."""


class ImageError(RowError):
    """The bytes are no usable photo."""


class WeightsError(BinTallyError):
    """Pretrained weights cannot be loaded."""


class CheckpointError(BinTallyError):
    """A checkpoint folder is missing, damaged or does not fit its config."""


class ExportError(BinTallyError):
    """A network cannot be written as an ONNX graph, or not in 8 bits."""


class ClusterTooSmallError(BinTallyError):
    """The cluster can never run what was asked for."""


class ServerError(BinTallyError):
    """A BinTally server refuses, or cannot be reached."""


class AwsError(BinTallyError):
    """AWS refuses a call, fails at it, or cannot be reached.

    Attributes:
        code: AWS's name for the error (`ResourceLimitExceeded`), or that of the client's exception.
        model_status: HTTP status of a hosted model that refused a request.
    """

    def __init__(self, message: str, code: str = "", model_status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.model_status = model_status


class AwsNotFoundError(AwsError):
    """What a call names is not there."""


class RunError(BinTallyError):
    """A training or search run ended without a result."""
