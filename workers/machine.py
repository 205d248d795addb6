"""What this machine is, for the records of a job."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch


def usable_cpus() -> int:
    """Cores this process may run on, which a container or taskset can make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory(device: torch.device) -> dict[str, int]:
    """Most bytes that this process has held: ``host`` (resident; 0 if the kernel does not say), on a GPU ``device``."""
    # Not getrusage, which counts the parent's memory before exec.
    held = {"host": _own_status("VmHWM")}
    return {**held, **({"device": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})}


def memory_now(device: torch.device) -> dict[str, int]:
    """Bytes that this process holds: ``host``, on a GPU ``device``, blocks that PyTorch keeps for later included."""
    held = {"host": _own_status("VmRSS")}
    return {**held, **({"device": torch.cuda.memory_reserved(device)} if device.type == "cuda" else {})}


def _own_status(name: str) -> int:
    """A size in bytes that the kernel tells of this process; 0: it does not."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), 0)


def describe_machine() -> str:
    """Processor, usable cores and system of this machine in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {usable_cpus()} usable cores, {platform.system()} {platform.machine()}"


@cache
def describe_platform(device: str) -> str:
    """What equal bytes need: machines of one description make the same bytes of the same task, others may not.

    On a GPU that is its kind, torch and CUDA; on a CPU its maker and its vector instructions, by which torch and its
    libraries choose their kernels, and torch. Pillow and pyarrow spell the files.

    Args:
        device: torch device, e.g. cpu or cuda.
    """
    import torch  # not at the top: plans describe machines and load no torch for it

    where = torch.device(device)
    libraries = f"torch {torch.__version__}, " + ", ".join(f"{name} {version(name)}" for name in ("pillow", "pyarrow"))
    if where.type == "cuda":
        # The CUDA runtime decides the kernels; ROCm has its own version.
        runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"HIP {torch.version.hip}"
        return f"{torch.cuda.get_device_name(where)}, {runtime}, {libraries}"
    kind = f"{_cpu_maker()} {torch.backends.cpu.get_cpu_capability()}" if where.type == "cpu" else where.type
    return f"{kind}, {libraries}"


def _cpu_maker() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    makers = [line.partition(":")[2].strip() for line in lines if line.startswith(("vendor_id", "CPU implementer"))]
    return " ".join([platform.machine(), *makers[:1]])
