"""Which endpoint a command is about."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serve.aws.plan import check_name

if TYPE_CHECKING:
    from serve.aws.calls import Aws


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointArgs:
    """Which endpoint."""

    name: str = "bintally"
    """Of the endpoint; names of all that belongs to it begin so."""
    region: str | None = None
    """Of AWS. Default: AWS_REGION, or that of the profile."""

    def connect(self, *, dry_run: bool = False, **replies: dict[str, Any]) -> "Aws":
        """Calls to AWS, or their print; `replies` is what a dry run is to find.

        Raises:
            ConfigError: the name can be none, or no region is set.
        """
        from serve.aws.calls import Aws, DryRun, choose_region

        check_name(self.name)
        region = choose_region(self.region)
        return DryRun(region, **replies) if dry_run else Aws(region)
