"""The KubeRay manifests: made of cluster.yaml as it is, and of fields that KubeRay has."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # no stubs installed
import pytest
import ray
import yaml
from ray.serve.schema import ServeDeploySchema

from cluster.manifests import ManifestArgs, ray_job, ray_service, to_yaml
from cluster.render import ROOT, cluster_config
from serve.settings import settings_from_dict

Values = dict[str, Any]

MANIFESTS = ROOT / "cluster" / "kuberay"


def record(required: str = "", **properties: Any) -> Values:  # noqa: ANN401  # JSON schemas
    """A mapping with these fields and no others."""
    fields = {"type": "object", "properties": properties, "additionalProperties": False}
    return fields | {"required": required.split()}


TEXT, NUMBER, FLAG, TEXTS = (
    {"type": "string"},
    {"type": "integer"},
    {"type": "boolean"},
    {
        "type": "object",
        "additionalProperties": {"type": "string"},
    },
)


def each(items: Values) -> Values:
    return {"type": "array", "items": items, "minItems": 1}


# The fields that we use of KubeRay's v1 API and of Kubernetes's pods, with their types. The manifests were also checked
# against the whole definitions of KubeRay 1.7.0 (59d663a), unknown fields refused; see docs/log.md.
RIGHTS = record(
    "", allowPrivilegeEscalation=FLAG, runAsNonRoot=FLAG, runAsUser=NUMBER, capabilities=record("drop", drop=each(TEXT))
)
CONTAINER = record(
    "name image resources",
    name=TEXT,
    image=TEXT,
    resources=record("", requests=TEXTS, limits=TEXTS),
    securityContext=RIGHTS,
    env=each(record("name value", name=TEXT, value=TEXT)),
    volumeMounts=each(record("name mountPath", name=TEXT, mountPath=TEXT)),
)
VOLUME = record("name", name=TEXT, secret=record("secretName", secretName=TEXT))
POD = record(
    "spec",
    metadata=record("", labels=TEXTS),
    spec=record(
        "containers",
        containers=each(CONTAINER),
        volumes=each(VOLUME),
        nodeSelector=TEXTS,
        serviceAccountName=TEXT,
        restartPolicy={"enum": ["Never", "OnFailure"]},
    ),
)
GROUP = record(
    "groupName minReplicas maxReplicas template",
    groupName={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    minReplicas=NUMBER,
    replicas=NUMBER,
    maxReplicas=NUMBER,
    priority=NUMBER,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = record(
    "headGroupSpec rayVersion",
    rayVersion=TEXT,
    authOptions=record("", mode={"enum": ["disabled", "token"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=record("", version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NUMBER),
    headGroupSpec=record("template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=each(GROUP),
)
JOB = record(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submitterPodTemplate=POD,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER,
)
SERVICE = record(
    "serveConfigV2 rayClusterConfig",
    serveConfigV2=TEXT,
    upgradeStrategy=record("type", type={"enum": ["NewCluster", "NewClusterWithIncrementalUpgrade", "None"]}),
    rayClusterConfig=CLUSTER,
)


def resource(spec: Values) -> Values:
    return record(
        "apiVersion kind metadata spec",
        apiVersion={"const": "ray.io/v1"},
        kind=TEXT,
        metadata=record("name", name=TEXT, labels=TEXTS),
        spec=spec,
    )


def documents(name: str) -> list[Values]:
    return list(yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()))


@pytest.mark.parametrize(("name", "spec"), [("search", JOB), ("counter", SERVICE)])
def test_the_manifests_have_kuberays_fields_alone(name: str, spec: Values) -> None:
    manifest = documents(name)[0]
    jsonschema.validate(manifest, resource(spec))
    cluster_key = "rayClusterSpec" if name == "search" else "rayClusterConfig"
    for path, key in (((), "rayVersoin"), (("headGroupSpec",), "rayStartParameters"), (("autoscalerOptions",), "idle")):
        wrong = copy.deepcopy(manifest)
        part = wrong["spec"][cluster_key]
        for step in path:
            part = part[step]
        part[key] = "x"
        with pytest.raises(jsonschema.ValidationError, match=key):
            jsonschema.validate(wrong, resource(spec))


def test_the_committed_manifests_are_those_of_todays_settings(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "cluster" / "manifests.py", "--out", tmp_path]
    subprocess.run(command, check=True, cwd=tmp_path)
    for name in ("search", "counter"):
        assert (tmp_path / f"{name}.yaml").read_text() == (MANIFESTS / f"{name}.yaml").read_text(), "run `make kuberay`"


@pytest.mark.parametrize(
    "command", [("manifests.py", "--out", "/proc/no"), ("render.py", "--variant", "cpu", "--out", "/proc/no/x.yaml")]
)
def test_a_folder_that_cannot_be_made_is_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    script, *flags = command
    done = subprocess.run(
        [sys.executable, ROOT / "cluster" / script, *flags], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: out cannot be made: [Errno 2] No such file or directory: '/proc/no'\n"


def test_image_and_checkpoint_reach_all_pods() -> None:
    args = ManifestArgs(image="registry/bintally:7", checkpoint="s3://b/m@0123ab")
    text = to_yaml(ray_job(args) + ray_service(args))
    assert set(re.findall(r" image: (\S+)", text)) == {"registry/bintally:7"}
    assert "checkpoint: s3://b/m@0123ab\n" in text


def test_groups_are_the_node_types_of_cluster_yaml() -> None:
    for name, key, config in (
        ("search", "rayClusterSpec", cluster_config()),
        ("counter", "rayClusterConfig", cluster_config("cpu")),
    ):
        cluster = documents(name)[0]["spec"][key]
        types = config["available_node_types"]
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] == 60 * config["idle_timeout_minutes"]
        assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
        groups = {group["groupName"].replace("-", "_"): group for group in cluster["workerGroupSpecs"]}
        assert groups.keys() == types.keys() - {"head"}
        for one, group in groups.items():
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert limits.get("nvidia.com/gpu") == (str(gpus) if (gpus := types[one]["resources"].get("GPU")) else None)
            assert (group["maxReplicas"], group["labels"]) == (types[one]["max_workers"], types[one]["labels"])


def test_pods_replace_a_dead_proxy_as_soon_as_the_nodes_of_aws() -> None:
    text = (ROOT / "cluster.yaml").read_text()
    (pod,) = {
        str(env)
        for env in re.findall(r"- name: (RAY_SERVE_\w+)\n +value: '([\d.]+)'", to_yaml(ray_service(ManifestArgs())))
    }
    assert pod == str(re.findall(r"export (RAY_SERVE_\w+)=([\d.]+)'", text)[0])


def test_the_counter_is_the_server_of_config_yaml() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(documents("counter")[0]["spec"]["serveConfigV2"]))
    (deployment,) = config.applications[0].deployments
    assert config.applications[0].import_path == "serve.app:bound"
    assert isinstance(deployment.user_config, dict)
    assert settings_from_dict(deployment.user_config).token_file == "/tokens/tokens"  # noqa: S105  # a path


def test_the_image_has_the_ray_of_the_lock() -> None:
    dockerfile = (MANIFESTS / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{ray.__version__}-py311\n" in dockerfile
    for path in re.findall(r"^COPY (.+) \S+$", dockerfile, flags=re.MULTILINE):
        assert all((ROOT / one).exists() for one in path.split())
