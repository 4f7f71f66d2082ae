"""What Ray is to run, and the same as a config of Ray Serve."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from bintally.errors import ConfigError
from bintally.ports import free_port
from serve.settings import Settings

APPLICATION: Final = "bintally"
DEPLOYMENT: Final = "BinCounter"
SURGE_PERCENT: Final = 20  # rounded up: where replicas are replaced, some start before others end


@dataclass(frozen=True, kw_only=True, slots=True)
class RayPlan:
    """What Ray is to run."""

    settings: Settings
    num_replicas: int = 1
    """One CPU thread each."""
    max_replicas: int | None = None
    """With more than num_replicas, there are as many as the load needs."""
    target_in_flight: int = 8
    """Requests under way in each replica, on average; with more, and max_replicas, there will be more replicas."""
    gpus_per_replica: float = 0.0
    host: str = "127.0.0.1"
    """Of Ray Serve's own proxy, where no front stands before the replicas."""
    port: int = 8000
    replica_ports: range | None = None
    """The replicas listen at some of these, on the loopback; None leaves clients to Ray Serve's own proxy."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_replicas <= (self.max_replicas or self.num_replicas):
            raise ConfigError("replicas must be 1 or more, and not above max_replicas")
        if self.target_in_flight < 1 or self.gpus_per_replica < 0:
            raise ConfigError("target_in_flight must be 1 or more, and gpus_per_replica not negative")
        if self.replica_ports and len(self.replica_ports) < (self.max_replicas or self.num_replicas):
            raise ConfigError(f"replica_ports must be {self.max_replicas or self.num_replicas} or more")


def deploy_config(plan: RayPlan) -> dict[str, Any]:
    """The Serve config (ray.serve.schema.ServeDeploySchema) of a plan.

    Settings are the deployment's user_config: with others, replicas load the models while they answer by the old ones.
    """
    behind_front = plan.replica_ports is not None
    deployment: dict[str, Any] = {
        "name": DEPLOYMENT,
        "max_surge_percent": 0 if plan.gpus_per_replica else SURGE_PERCENT,  # there is a CPU to spare, but no GPU
        "user_config": asdict(plan.settings),
        "ray_actor_options": {
            "num_cpus": 1,
            "num_gpus": plan.gpus_per_replica,
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        },
    }
    if plan.max_replicas:
        deployment["autoscaling_config"] = {
            "min_replicas": plan.num_replicas,
            "max_replicas": plan.max_replicas,
            "target_ongoing_requests": plan.target_in_flight,
        }
    else:
        deployment["num_replicas"] = plan.num_replicas
    return {
        "http_options": {
            "host": "127.0.0.1" if behind_front else plan.host,
            "port": free_port() if behind_front else plan.port,
        },
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "serve.app:bound",
                "deployments": [deployment],
            }
        ],
    }
