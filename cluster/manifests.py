"""Write KubeRay manifests from cluster.yaml and serve/config.yaml: the search as RayJob, the counter as RayService.

    python cluster/manifests.py                                               # cluster/kuberay/*.yaml, as committed
    python cluster/manifests.py --image 1234.dkr.ecr.us-east-1.amazonaws.com/bintally:0.1.0 --out my-manifests

Node types, their bounds, priorities, labels and idle timeout are those of cluster.yaml, and of its variant cpu for the
counter. Nodes are EC2 instances of EKS node groups. For KubeRay 1.7 or newer: groups have priorities since then.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import tyro
import yaml

from bintally.cli import readable_errors
from cluster.render import ROOT, cluster_config, make_folder

Values = dict[str, Any]

_APP: Final = {"app": "bintally"}
_CAPACITY: Final = {"on-demand": "ON_DEMAND", "spot": "SPOT"}  # our label `market` in the words of EKS
EC2: Final = {"r6i.2xlarge": (8, 64), "r6i.xlarge": (4, 32), "g5.12xlarge": (48, 192), "c6i.4xlarge": (16, 32)}
"""vCPUs and GiB of the instance types that cluster.yaml and its variant cpu name."""
_ENV: Final = [{"name": "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "value": "0.25"}]  # as in cluster.yaml, which says why
_SEARCH: Final = "python /bintally/tune/search.py --use-gpu --num-workers 4 --run-dir"


@dataclass(frozen=True, kw_only=True, slots=True)
class ManifestArgs:
    """What to write where."""

    image: str = "bintally:0.1.0"
    """The image of cluster/kuberay/Dockerfile, as the nodes pull it."""
    checkpoint: str = "s3://YOUR-BUCKET/model"
    """What the counter serves."""
    run_dir: str = "s3://YOUR-BUCKET/search"
    """Where the search leaves what it finds."""
    out: Path = ROOT / "cluster" / "kuberay"
    """Folder to write search.yaml and counter.yaml into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pods:
    """What all pods of a cluster have alike."""

    image: str
    """What they run."""
    volumes: tuple[tuple[str, Values], ...] = ()
    """What they have beside it, by where it is mounted."""

    def template(self, container: str, node_type: Values) -> Values:
        """The template of pods that fill a node each.

        Args:
            container: its name.
            node_type: of cluster.yaml.
        """
        instance_type = node_type["node_config"]["InstanceType"]
        cores, gib = EC2[instance_type]
        selector = {"node.kubernetes.io/instance-type": instance_type}
        if market := node_type.get("labels", {}).get("market"):
            selector["eks.amazonaws.com/capacityType"] = _CAPACITY[market]
        memory = f"{gib * 7 // 8}Gi"  # the kubelet and daemons take some of each node
        limits = {"memory": memory}
        if gpus := node_type["resources"].get("GPU"):
            limits["nvidia.com/gpu"] = str(gpus)
        ray_container: Values = {
            "name": container,
            "image": self.image,
            "env": _ENV,
            "resources": {"requests": {"cpu": str(cores * 7 // 8), "memory": memory}, "limits": limits},
            "securityContext": _unprivileged(),
        }
        spec: Values = {
            "serviceAccountName": "bintally",  # with the role of cluster/iam/worker.json
            "nodeSelector": selector,
            "containers": [ray_container],
        }
        if self.volumes:
            ray_container["volumeMounts"] = [{"name": one["name"], "mountPath": path} for path, one in self.volumes]
            spec["volumes"] = [one for _, one in self.volumes]
        return {"metadata": {"labels": _APP}, "spec": spec}

    def cluster(self, config: Values) -> Values:
        """A Ray cluster as KubeRay wants it, with the node types of a cluster.yaml."""
        types = dict(config["available_node_types"])
        head = types.pop(config["head_node_type"])
        groups = [
            {
                "groupName": name.replace("_", "-"),
                "minReplicas": one["min_workers"],
                "replicas": one["min_workers"],
                "maxReplicas": min(one["max_workers"], config["max_workers"]),
                "priority": one["priority"],
                "labels": one["labels"],
                "rayStartParams": {},
                "template": self.template("ray-worker", one),
            }
            for name, one in types.items()
        ]
        return {
            "rayVersion": ray.__version__,
            "authOptions": {"mode": "token"},  # KubeRay makes the secret
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": config["idle_timeout_minutes"] * 60},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": str(head["resources"]["CPU"])},
                "template": self.template("ray-head", head),
            },
            "workerGroupSpecs": groups,
        }


def ray_job(args: ManifestArgs) -> list[Values]:
    """The search: a cluster that lasts as long as the search does."""
    submitter = {
        "name": "ray-job-submitter",
        "image": args.image,
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": _unprivileged(),
    }
    spec = {
        "entrypoint": f"{_SEARCH} {args.run_dir}",
        "submitterPodTemplate": {  # labelled, so that the network policy lets it in
            "metadata": {"labels": _APP},
            "spec": {"restartPolicy": "Never", "containers": [submitter]},
        },
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,  # time to look at the logs
        "backoffLimit": 0,  # a search is resumed by hand, with --resume
        "rayClusterSpec": Pods(image=args.image).cluster(cluster_config()),
    }
    return [_resource("RayJob", "bintally-search", spec), _network_policy()]


def ray_service(args: ManifestArgs) -> list[Values]:
    """The counter, on CPUs: a new cluster is made ready beside the old one when more than the Serve config changes."""
    serve: Values = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
    serve["proxy_location"] = "EveryNode"
    serve["http_options"]["host"] = "0.0.0.0"  # noqa: S104  # of a pod; the network policy decides who comes in
    (deployment,) = serve["applications"][0]["deployments"]
    del deployment["num_replicas"]
    deployment["autoscaling_config"] = {"min_replicas": 2, "max_replicas": 16, "target_ongoing_requests": 8}
    deployment["user_config"] |= {"checkpoint": args.checkpoint, "token_file": "/tokens/tokens"}
    tokens = ("/tokens", {"name": "tokens", "secret": {"secretName": "bintally-tokens"}})
    spec = {
        "serveConfigV2": yaml.safe_dump(serve, sort_keys=False),
        "upgradeStrategy": {"type": "NewCluster"},
        "rayClusterConfig": Pods(image=args.image, volumes=(tokens,)).cluster(cluster_config("cpu")),
    }
    return [_resource("RayService", "bintally-counter", spec), _network_policy()]


def _resource(kind: str, name: str, spec: Values) -> Values:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name, "labels": _APP}, "spec": spec}


def _unprivileged() -> Values:
    user = {
        "runAsNonRoot": True,
        "runAsUser": 1000,
    }  # by number: the kubelet cannot tell whether the name `ray` is root
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **user}


def _network_policy() -> Values:
    """Who may open a connection to our pods: they themselves, the operator, Prometheus, and pods marked as clients."""
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    prometheus = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    client = {"podSelector": {"matchLabels": {"bintally-client": "true"}}}
    ingress: list[Values] = [
        {"from": [{"podSelector": {"matchLabels": _APP}}]},
        {"from": [operator], "ports": [{"port": 8265}]},
        {"from": [prometheus], "ports": [{"port": 8080}, {"port": 8000}]},
        {"from": [client], "ports": [{"port": 8000}]},
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "bintally", "labels": _APP},
        "spec": {"podSelector": {"matchLabels": _APP}, "policyTypes": ["Ingress"], "ingress": ingress},
    }


class _Plain(yaml.SafeDumper):
    """Writes shared parts out, and long texts as blocks."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def to_yaml(resources: list[Values]) -> str:
    """Resources as the documents of one file."""
    return "# Made by cluster/manifests.py; edit cluster.yaml or serve/config.yaml.\n" + yaml.dump_all(
        resources, Dumper=_Plain, sort_keys=False, width=120
    )


def main() -> None:
    """Parse, write both files."""
    with readable_errors():
        args = tyro.cli(ManifestArgs, description=__doc__)
        make_folder(args.out)
        (args.out / "search.yaml").write_text(to_yaml(ray_job(args)))
        (args.out / "counter.yaml").write_text(to_yaml(ray_service(args)))


if __name__ == "__main__":
    main()
