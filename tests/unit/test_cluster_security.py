"""Every YAML of the repository against our rules of security, and the rules against YAMLs that break them."""

import copy
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from cluster.render import ROOT, cluster_config

Config = dict[str, Any]

VARIANTS = (None, "cpu", "one-gpu")
MANIFESTS = ("search", "counter")
PARTS = ("cluster/cpu.yaml", "cluster/one-gpu.yaml")  # of a cluster; merged, they are looked at as VARIANTS
OPEN_NOTHING = {  # test_monitoring.py; and what AWS's image runs, whose host and port are AWS's
    "cluster/monitoring/alerts.yaml",
    "cluster/monitoring/prometheus.yaml",
    "serve/aws/hosted/config.yaml",
}


def faults_of_cluster(config: Config) -> Iterator[str]:
    heads = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    if [re.findall(r"--dashboard-host[= ](\S+)", line) for line in heads] != [["127.0.0.1"]]:
        yield "the dashboard must listen on the loopback alone"
    text = yaml.safe_dump(config)
    if re.search(r"0\.0\.0\.0|::/0|--ray-client-server-port", text):
        yield "nothing may be open to all addresses"
    for rule in config["provider"].get("security_group", {}).get("IpPermissions", []):
        if (rule.get("FromPort"), rule.get("ToPort")) != (22, 22):
            yield f"only ssh may come in, not {rule}"
    if not any("export RAY_AUTH_MODE=token" in line for line in config["initialization_commands"]):
        yield "token authentication must be on before Ray starts"
    if "~/.ray/auth_token" not in config["file_mounts"]:
        yield "all nodes must have the token"
    for name, node_type in config["available_node_types"].items():
        if node_type["node_config"].get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: IMDSv2 must be required"
        if "NetworkInterfaces" in node_type["node_config"]:
            yield f"{name}: the interfaces' groups would go past ours"


def faults_of_manifest(resources: list[Config]) -> Iterator[str]:
    ray = next(one for one in resources if one["kind"] in ("RayJob", "RayService"))
    policies = [one["spec"] for one in resources if one["kind"] == "NetworkPolicy"]
    if [one["kind"] for one in resources if one["kind"] not in (ray["kind"], "NetworkPolicy")]:
        yield "unknown kind: write a rule for it"
    cluster = ray["spec"].get("rayClusterSpec") or ray["spec"]["rayClusterConfig"]
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "token authentication must be on"
    pods = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    pods += [ray["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in ray["spec"] else []
    for pod in pods:
        for container in pod["spec"]["containers"]:
            allowed = container["securityContext"]
            if allowed["allowPrivilegeEscalation"] or not allowed["runAsNonRoot"] or pod["spec"].get("hostNetwork"):
                yield f"{container['name']} has rights that it does not need"
        if [p for p in policies if p["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()] == []:
            yield "a pod without a network policy"
    for rule in (rule for policy in policies for rule in policy["ingress"]):
        if not rule.get("from") or any("ipBlock" in peer or peer == {} for peer in rule["from"]):
            yield f"{rule} lets in everybody"
        if not rule.get("ports") and "bintally" not in str(rule["from"]):
            yield f"{rule} opens all ports"


def faults_of_serve(config: Config) -> Iterator[str]:
    if config["http_options"]["host"] != "127.0.0.1":
        yield "the server must listen on the loopback unless asked"


def faults_of_role(policy: Config) -> Iterator[str]:
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if any("*" in action for action in actions):
            yield f"{statement['Sid']}: name the actions"
        looks = all(re.fullmatch(r"ec2:Describe\w+", action) for action in actions)  # have no resources
        if statement["Resource"] == "*" and not (looks or statement.get("Condition")):
            yield f"{statement['Sid']}: name the resources"
        if not {action.split(":")[0] for action in actions} <= {"s3", "cloudwatch", "logs", "ec2", "ssm", "iam"}:
            yield f"{statement['Sid']}: rights that nobody needs"


def manifest(name: str) -> list[Config]:
    return list(yaml.safe_load_all((ROOT / f"cluster/kuberay/{name}.yaml").read_text()))


def serve_config() -> Config:
    return dict(yaml.safe_load((ROOT / "serve/config.yaml").read_text()))


def role(name: str) -> Config:
    return dict(json.loads((ROOT / f"cluster/iam/{name}.json").read_text()))


def test_no_yaml_of_the_repository_breaks_a_rule() -> None:
    assert [list(faults_of_cluster(cluster_config(variant))) for variant in VARIANTS] == [[], [], []]
    assert [list(faults_of_manifest(manifest(name))) for name in MANIFESTS] == [[], []]
    assert list(faults_of_serve(serve_config())) == []
    assert [list(faults_of_role(role(name))) for name in ("head", "worker")] == [[], []]


def test_no_yaml_is_left_out() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)  # noqa: S607
    found = {path for path in tracked.stdout.splitlines() if path.endswith((".yaml", ".yml"))}
    looked_at = {"cluster.yaml", *PARTS, "serve/config.yaml", *(f"cluster/kuberay/{name}.yaml" for name in MANIFESTS)}
    assert found - looked_at <= OPEN_NOTHING, "write a rule for it"
    assert "http_options" not in (ROOT / "serve/aws/hosted/config.yaml").read_text()


def test_workers_may_start_no_instances_and_take_no_roles() -> None:
    actions = str(role("worker"))
    assert "ec2:" not in actions
    assert "iam:" not in actions


def open_dashboard(config: Config) -> None:
    config["head_start_ray_commands"][1] = config["head_start_ray_commands"][1].replace("127.0.0.1", "0.0.0.0")


def open_port(config: Config) -> None:
    rule = {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}
    config["provider"]["security_group"] = {"IpPermissions": [rule]}


def open_range(config: Config) -> None:
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    config["provider"]["security_group"] = {"IpPermissions": [rule]}


def no_token(config: Config) -> None:
    config["initialization_commands"] = []


def no_token_file(config: Config) -> None:
    del config["file_mounts"]["~/.ray/auth_token"]


def old_metadata(config: Config) -> None:
    del config["available_node_types"]["gpu_spot"]["node_config"]["MetadataOptions"]


@pytest.mark.parametrize("spoil", [open_dashboard, open_port, open_range, no_token, no_token_file, old_metadata])
def test_a_cluster_that_breaks_a_rule_is_found(spoil: Callable[[Config], None]) -> None:
    config = copy.deepcopy(cluster_config())
    spoil(config)
    assert list(faults_of_cluster(config)) != []


def no_auth(resources: list[Config]) -> None:
    resources[0]["spec"]["rayClusterConfig"]["authOptions"]["mode"] = "disabled"


def no_policy(resources: list[Config]) -> None:
    del resources[1]


def open_policy(resources: list[Config]) -> None:
    resources[1]["spec"]["ingress"].append({"ports": [{"port": 8265}]})


def all_ports(resources: list[Config]) -> None:
    del resources[1]["spec"]["ingress"][-2]["ports"]


def more_rights(resources: list[Config]) -> None:
    head = resources[0]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["securityContext"]["runAsNonRoot"] = False


def load_balancer(resources: list[Config]) -> None:
    resources.append({"kind": "Service", "spec": {"type": "LoadBalancer"}})


@pytest.mark.parametrize("spoil", [no_auth, no_policy, open_policy, all_ports, more_rights, load_balancer])
def test_a_manifest_that_breaks_a_rule_is_found(spoil: Callable[[list[Config]], None]) -> None:
    resources = manifest("counter")
    spoil(resources)
    assert list(faults_of_manifest(resources)) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [("Action", "s3:*"), ("Resource", "*"), ("Action", ["lambda:InvokeFunction"])],
)
def test_a_role_with_more_than_it_needs_is_found(key: str, value: Any) -> None:  # noqa: ANN401
    policy = role("worker")
    policy["Statement"][0][key] = value
    assert list(faults_of_role(policy)) != []


def test_a_server_that_listens_everywhere_is_found() -> None:
    assert list(faults_of_serve({"http_options": {"host": "0.0.0.0"}})) != []
