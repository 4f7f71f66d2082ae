"""What a cluster will have once its autoscaler has started all it may; no Ray is needed."""

from pathlib import Path

import yaml

from cluster.render import cluster_config
from train.turns import planned_resources


def planned_by(config: dict[str, object], folder: Path) -> dict[str, float]:
    path = folder / "ray_bootstrap_config.yaml"
    path.write_text(yaml.safe_dump(config))
    return planned_resources(path)


def test_a_fresh_cluster_counts_the_nodes_that_it_may_start(tmp_path: Path) -> None:
    assert planned_by(cluster_config(), tmp_path) == {"CPU": 4 * 48, "GPU": 4 * 4}  # 2 + 4 by their types, 4 in all
    assert planned_by(cluster_config("one-gpu"), tmp_path)["GPU"] == 1


def test_of_each_resource_the_nodes_with_most_of_it_count_first(tmp_path: Path) -> None:
    types = {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "wide": {"resources": {"CPU": 64}, "max_workers": 1},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}},
    }
    config = {"head_node_type": "head", "max_workers": 3, "available_node_types": types}
    assert planned_by(config, tmp_path) == {"CPU": 2 + 64 + 8 + 8, "GPU": 3}


def test_a_cluster_without_an_autoscaler_has_what_runs(tmp_path: Path) -> None:
    assert planned_resources(tmp_path / "absent.yaml") == {}
