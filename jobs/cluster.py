"""Ray for one job: joins the cluster that RAY_ADDRESS names, or starts one on this machine and ends it again."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jobs.spec import SpecError, Workers
from workers.machine import usable_cpus

logger = logging.getLogger(__name__)

#: No image crosses the object store, so it may be as small as Ray likes it.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024

#: Only Linux has it without setting up; Ray takes 127.0.0.1 for a wish to find the machine's own address.
_LOOPBACK = "127.0.0.2"


def _guard_local_ray() -> None:
    """Ray listens on every interface and runs whatever it is sent: a token made for this run keeps others out.

    A token in the environment leaves no file in the home folder, which would turn authentication on for later
    clusters. Ray reads both variables when it is imported: a program that imported it before has chosen its own way.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray warns that it will stop hiding GPUs from actors that reserve none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    try:
        ray.init(address="auto", **options)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise SpecError(f"RAY_ADDRESS: got {address!r}, allowed: a running Ray cluster ({error})") from error


@contextmanager
def running_ray(workers: Workers) -> Iterator[Any]:
    """The ray module, connected; a local cluster is as large as the workers that were asked for, and ends with us."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        _guard_local_ray()
    import ray  # not at the top: the environment above has to be there first, and a finished job needs no Ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _join(ray, address, options)
        else:
            wanted = math.ceil(workers.count * workers.num_cpus)
            if wanted > (have := usable_cpus()):
                logger.warning("%d CPUs are asked for and this machine has %d: workers share them", wanted, have)
            options |= {"_node_ip_address": _LOOPBACK} if sys.platform == "linux" else {}
            ray.init(
                address="local",
                num_cpus=max(usable_cpus(), wanted),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **options,
            )
        yield ray
    finally:
        ray.shutdown()


def worker_count(ray: Any, workers: Workers) -> int:
    """Actors to start: what the spec says, or as many as the cluster has room for now.

    Raises:
        SpecError: the cluster has room for none.
    """
    if workers.count:
        return workers.count
    have = ray.cluster_resources()
    if workers.num_gpus > 0:
        count, what, each = int(have.get("GPU", 0) / workers.num_gpus), "GPUs", workers.num_gpus
    else:
        each = max(workers.num_cpus, float(workers.threads))
        count, what = int(have.get("CPU", 0) / each), "CPUs"
    if count < 1:
        raise SpecError(
            f"workers.count: got 0 (as many as fit), allowed: a cluster with at least {each:g} {what} "
            f"(this one has {have.get(what[:-1], 0):g})"
        )
    return count


def reserved(workers: Workers) -> dict[str, Any]:
    """Ray options of one actor; Ray itself restarts and repeats nothing."""
    return {
        "num_cpus": workers.num_cpus,
        "num_gpus": workers.num_gpus,
        "accelerator_type": workers.accelerator_type,
        "max_restarts": 0,
        "max_task_retries": 0,
    }


def no_room(ray: Any, workers: Workers) -> str:
    """Why no actor came up in time, as far as the cluster's size tells."""
    have = ray.cluster_resources()
    return (
        f"no worker came up in {workers.start_timeout_s:g} s (workers.start_timeout_s): each needs "
        f"{workers.num_cpus:g} CPUs and {workers.num_gpus:g} GPUs, the cluster has "
        f"{have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
    )
