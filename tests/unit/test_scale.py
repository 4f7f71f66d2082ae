"""The simulation of a cluster: it meets what was measured, and goes the right way where nothing could be."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.scale import ScaleArgs, check_against_baselines, epochs_by_asha, plan, served_per_s, trained_per_s
from bintally.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
ARGS = ScaleArgs(quick=True)


def test_the_simulation_meets_the_baselines() -> None:
    assert {
        name: (measured, said) for name, measured, said in check_against_baselines() if abs(said / measured - 1) > 0.15
    } == {}


def test_a_server_with_one_client_counts_each_photo_by_itself() -> None:
    assert served_per_s(1, alone_ms=20, batched_ms=10, request_ms=5) == pytest.approx(40)
    assert served_per_s(64, alone_ms=20, batched_ms=10, request_ms=5) == pytest.approx(1000 / 15, rel=0.02)


def test_the_slower_of_reading_and_training_decides() -> None:
    assert trained_per_s(100, 10_000) == pytest.approx(100, rel=0.02)
    assert trained_per_s(10_000, 100) == pytest.approx(100, rel=0.02)
    assert 90 < trained_per_s(100, 100) < 100


def test_asha_stops_most_trials_at_its_first_rung() -> None:
    epochs = epochs_by_asha(300, 24, random.Random(0))  # noqa: S311
    assert set(epochs) == {4, 12, 24}
    assert epochs.count(4) / 300 == pytest.approx(2 / 3, abs=0.1)


def test_interruptions_cost_time_and_a_notice_saves_some() -> None:
    calm, rough = (plan(replace(ARGS, interruptions_per_hour=rate))["search"] for rate in (0.0, 2.0))
    assert calm["hours"] == pytest.approx(calm["hours_without_notice"])
    assert calm["hours"] < rough["hours"] < rough["hours_without_notice"]


def test_the_command_writes_its_figures_and_refuses_nonsense(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--quick"]
    subprocess.run([*command, "--json", str(tmp_path / "scale.json")], check=True, capture_output=True)
    figures = json.loads((tmp_path / "scale.json").read_text())
    assert figures["epoch"].keys() == plan(ARGS)["epoch"].keys()
    refused = subprocess.run([*command, "--interruptions-per-hour", "12"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: interruptions_per_hour must be from 0 to below 6, not 12.0: ")


def test_nonsense_is_refused_with_the_name_of_its_field() -> None:
    for name in ("server_load", "nodes", "s3_per_s"):
        with pytest.raises(ConfigError, match=f"{name} must be above 0, not 0"):
            replace(ARGS, **{name: 0})


def test_a_search_ends_at_the_highest_rate() -> None:
    figures = plan(replace(ARGS, interruptions_per_hour=5.9))["search"]
    assert figures["hours"] < figures["hours_without_notice"] < 20 * figures["epochs"] / 60


def test_s3_decides_how_many_nodes_are_of_use() -> None:
    hours = [plan(replace(ARGS, nodes=nodes, interruptions_per_hour=0.0))["search"]["hours"] for nodes in (1, 2, 4)]
    assert hours[0] / hours[1] == pytest.approx(2, rel=0.03)
    assert hours[2] == pytest.approx(hours[1], rel=0.03)
    epoch = plan(ARGS)["epoch"]
    assert epoch["requests_per_s_of_a_node"] == pytest.approx(2 * epoch["photos_per_s_of_a_node"])


def test_one_proxy_hands_on_less_than_a_node_counts() -> None:
    served = plan(ARGS)["million_photos"]
    assert served["per_s_by_rays_proxy"] == ARGS.proxy_per_s < served["per_s_of_a_node"]
    assert served["hours_by_rays_proxy"] > served["hours_at_that_load"]
