"""cluster.yaml against Ray's own schema, the RayJob of the docs against the fields that KubeRay has."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.job.spec import Workers, load_spec
from jobs.run.cluster import reserved

ROOT = Path(__file__).parents[2]
#: From ray-operator/apis/ray/v1 of KubeRay 1.5.
JOB_FIELDS = {
    "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
    "activeDeadlineSeconds", "submissionMode", "runtimeEnvYAML", "suspend",
}  # fmt: skip
CLUSTER_FIELDS = {
    "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs",
}  # fmt: skip
GROUP_FIELDS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.fixture
def cluster() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return config


def test_the_autoscaler_accepts_the_cluster_file(cluster):
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["available_node_types"]["gpu_spot"]["max_workers"] == 16


def test_the_autoscaler_refuses_a_misspelt_field(cluster):
    with pytest.raises(ValidationError, match="idle_minutes"):
        validate_config(prepare_config({**cluster, "idle_minutes": 10}))


def test_no_actor_fits_on_the_head_and_workers_are_spot(cluster):
    types = cluster["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and cluster["head_node_type"] == "head"
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    wanted = reserved(Workers(num_gpus=1, accelerator_type="L4"))
    assert {"num_gpus": 1, "num_cpus": 1, "accelerator_type": "L4"}.items() <= wanted.items()
    assert f"accelerator_type:{wanted['accelerator_type']}" in types["gpu_spot"]["resources"]


def test_every_ray_of_the_cluster_asks_for_a_token_and_the_dashboard_stays_on_loopback(cluster):
    for role in ("head", "worker"):
        starts = [command for command in cluster[f"{role}_start_ray_commands"] if "ray start" in command]
        assert starts and all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
    assert cluster["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def test_no_file_of_the_cluster_holds_a_secret():
    text = (ROOT / "cluster.yaml").read_text() + (ROOT / "docs" / "operations.md").read_text()
    assert not re.search(r"AKIA[A-Z0-9]{16}|aws_secret|[0-9a-f]{64}", text)


def test_the_rayjob_of_the_docs_is_one():
    text = (ROOT / "docs" / "operations.md").read_text()
    block = next(
        each for each in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "RayJob" in each
    )
    job = yaml.safe_load(block)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    assert set(spec) <= JOB_FIELDS and set(cluster) <= CLUSTER_FIELDS
    assert all(set(group) <= GROUP_FIELDS for group in groups)
    assert cluster["authOptions"] == {"mode": "token"}
    assert all(isinstance(value, str) for group in groups for value in group["rayStartParams"].values())
    assert [group["template"]["spec"]["containers"][0]["name"] for group in groups] == ["ray-head", "ray-worker"]


def test_the_entrypoint_of_the_docs_is_a_command_of_ours(tmp_path):
    text = (ROOT / "docs" / "operations.md").read_text()
    entrypoint = yaml.safe_load(re.search(r"^(  entrypoint:.*?)^  backoff", text, re.MULTILINE | re.DOTALL)[1])
    program, command, file, *flags = shlex.split(entrypoint["entrypoint"])
    assert (program, command, file) == ("spd", "generate", "/job/job.yaml")
    path = tmp_path / "job.yaml"
    path.write_text("requests: {count: 1000}")
    assert flags[::2] == ["--set"] * 4
    spec = load_spec(str(path), flags[1::2])
    assert spec.workers.count == 16 and spec.workers.device == "cuda"
