"""Ray for one job: joins the cluster that RAY_ADDRESS names, or starts one on this machine and ends it again."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from jobs.job.spec import Workers
from jobs.words.errors import JobError, SpecError
from workers.machine import usable_cpus

logger = logging.getLogger(__name__)

#: No image crosses the object store, so it may be as small as Ray likes it.
_OBJECT_STORE_BYTES = 100 * 1024 * 1024

#: What a socket's path may have, and what Ray adds to that of its folder: session, date, process, socket.
_SOCKET_PATH, _SESSION_PATH = 107, 1 + len("session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
#: Room for logs and the socket folder; the object store lies in shared memory.
_SESSION_BYTES = 64 * 1024 * 1024
#: Names of session folders, and of a file in each on which its driver holds a lock.
_PREFIX, _HELD = "spd-", "driver"
_ADDRESS = re.compile(r"auto|(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")

_CONNECT_S = 10.0  #: longest wait for the first sign of a cluster
_LOOPBACK = "127.0.0.1"


def _guard_local_ray() -> None:
    """Ray runs whatever it is sent: a token made for this run keeps the machine's other users out.

    Left to itself, Ray would turn authentication on and leave the token in ``~/.ray/auth_token``, which turns it on for
    every later cluster of this user too. A token in the environment leaves no file. Ray reads the mode when it is
    imported: a program that imported it before gets a cluster without a token, on loopback like any other.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled" if "ray" in sys.modules else "token")
    if "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Otherwise Ray warns that it will stop hiding GPUs from actors that reserve none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _stay_on_loopback() -> None:
    """Keeps every server of a local Ray on 127.0.0.1, as Ray itself does on macOS and Windows.

    On Linux Ray takes that address for a wish to find the machine's outward one, and on any other its servers listen on
    all interfaces. Where this constant does not exist, Ray goes on doing so, behind the token.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


@contextmanager
def session_folder() -> Iterator[str]:
    """A folder for a local Ray that no other user can enter: who can write to it can take the place of a worker.

    It lies where there is room and the paths of sockets stay short enough, whatever TMPDIR is, and goes when Ray has
    ended; that of a driver that was killed goes when the next one starts. Below RAY_TMPDIR, for those who set it, it
    stays with its logs.

    Raises:
        SpecError: there is no such place.
    """
    asked = os.environ.get("RAY_TMPDIR")
    places = [asked] if asked else [*dict.fromkeys((os.environ.get("TMPDIR", "/tmp"), "/tmp", "/var/tmp", "/dev/shm"))]
    folder, problems = None, []
    for place in places:
        try:
            folder = _private_folder(Path(place))
            break
        except OSError as error:
            problems.append(f"{place}: {error.strerror or error}")
    if folder is None:
        name = "RAY_TMPDIR" if asked else "TMPDIR"
        raise SpecError(f"{name}: no room for Ray ({'; '.join(problems)}), allowed: a short path with 64 MiB to write")
    if not asked:
        _remove_abandoned(folder.parent)
    with (folder / "new").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # until this process ends, however that is
        (folder / "new").rename(folder / _HELD)  # nobody sees it without its lock
        try:
            yield str(folder)
        finally:
            if not asked:
                shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(place: Path) -> None:
    """Removes our folders whose drivers are gone; their Rays ended with them."""
    for held in place.glob(f"{_PREFIX}*/{_HELD}"):
        with suppress(OSError), held.open("a") as file:  # of another user, or gone meanwhile
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)


def _private_folder(place: Path) -> Path:
    """Makes a folder that is ours alone.

    Raises:
        OSError: the place cannot be written, is full, or its path is too long.
    """
    if shutil.disk_usage(place).free < _SESSION_BYTES:
        raise OSError("less than 64 MiB are free")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place)).absolute()  # mkdtemp's are 0700
    if len(os.fsencode(folder)) + _SESSION_PATH > _SOCKET_PATH:
        folder.rmdir()
        raise OSError(f"its path leaves less than the {_SESSION_PATH} characters that Ray's sockets need")
    return folder


def _join(ray: Any, address: str, options: dict[str, Any]) -> None:
    if not _ADDRESS.fullmatch(address):
        raise SpecError(f"RAY_ADDRESS: got {address!r}, allowed: host:port of a running Ray cluster, or auto")
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try for a quarter of an hour.
        if host:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        ray.init(address="auto", **options)
    except (OSError, OverflowError, ray.exceptions.AuthenticationError) as error:
        raise SpecError(f"RAY_ADDRESS: got {address!r}, allowed: a running Ray cluster ({error})") from error


@contextmanager
def running_ray(workers: Workers) -> Iterator[Any]:
    """The ray module, connected; a local cluster is as large as the workers that were asked for, and ends with us."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        address = ""
        _guard_local_ray()
    import ray  # not at the top: the environment above has to be there first, and a finished job needs no Ray

    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as ending:
        folder = "" if address else ending.enter_context(session_folder())
        ending.callback(ray.shutdown)
        if address:
            _join(ray, address, options)
        else:
            _start(ray, workers, folder, options)
        yield ray


def _start(ray: Any, workers: Workers, folder: str, options: dict[str, Any]) -> None:
    wanted = math.ceil(workers.count * workers.num_cpus)
    if wanted > (have := usable_cpus()):
        logger.warning("%d CPUs are asked for and this machine has %d: workers share them", wanted, have)
    _stay_on_loopback()
    if workers.metrics_port:
        _check_port(workers.metrics_port)
        logger.info("metrics for Prometheus: http://%s:%d/metrics", _LOOPBACK, workers.metrics_port)
    try:
        ray.init(
            address="local",
            _node_ip_address=_LOOPBACK,
            _temp_dir=folder,
            num_cpus=max(usable_cpus(), wanted),
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _metrics_export_port=workers.metrics_port or None,
            **options,
        )
    except Exception as error:  # Ray raises no type of its own here
        raise JobError(f"Ray does not start on this machine: {error}") from error


def _check_port(port: int) -> None:
    """Ray itself would start and serve no metrics.

    Raises:
        SpecError: somebody else listens there.
    """
    try:
        socket.create_server((_LOOPBACK, port)).close()
    except OSError as error:
        raise SpecError(
            f"workers.metrics_port: got {port}, allowed: a free port ({error.strerror or error}), or 0"
        ) from error


def worker_count(ray: Any, workers: Workers) -> int:
    """Actors to run: what the spec says, or as many as the cluster has room for now.

    Raises:
        SpecError: the cluster has room for none.
    """
    if workers.count:
        return workers.count
    leaving = draining_nodes(ray)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    count = sum(_fits(node["Resources"], workers) for node in nodes)
    if count < 1:
        raise SpecError(
            f"workers.count: got 0 (as many as fit), allowed: a cluster with a node of {_needs(workers)} "
            f"({_has(ray)}), or a count for an autoscaler to make room for"
        )
    return count


def _fits(resources: dict[str, float], workers: Workers) -> int:
    """Actors that one node has room for, if it had nothing else to do."""
    if workers.accelerator_type and f"accelerator_type:{workers.accelerator_type}" not in resources:
        return 0
    # Without a GPU the threads are what the node runs out of first, whatever is reserved.
    cpus = workers.num_cpus if workers.num_gpus else max(workers.num_cpus, float(workers.threads))
    needs = {"CPU": cpus, "GPU": workers.num_gpus}
    # A little more, because Ray itself counts in ten-thousandths: 0.3 fits three times into 0.9.
    return min(int(resources.get(name, 0.0) / need + 1e-6) for name, need in needs.items() if need)


def draining_nodes(ray: Any) -> frozenset[str]:
    """Ids of the nodes that are about to be taken away; a Ray that cannot tell has none.

    Ray starts nothing new there and goes on with what runs, which is never told. Only the cluster knows.
    """
    state: Any = ray._private.state.state
    return frozenset(state.get_draining_nodes()) if hasattr(state, "get_draining_nodes") else frozenset()


def cut_off(ray: Any) -> bool:
    """Whether the node of this driver died: Ray then starts nothing for it any more, and does not say so."""
    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes())


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
    return (
        f"no worker came up in {workers.start_timeout_s:g} s (workers.start_timeout_s): each needs {_needs(workers)}, "
        f"{_has(ray)}"
    )


def _needs(workers: Workers) -> str:
    kind = f" of type {workers.accelerator_type}" if workers.accelerator_type else ""
    return f"{workers.num_cpus:g} CPUs and {workers.num_gpus:g} GPUs{kind}"


def _has(ray: Any) -> str:
    have = ray.cluster_resources()
    return f"the cluster has {have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
