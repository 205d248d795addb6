"""The worker that measures: what a Ray actor runs before there is a plan, with the job's device and threads."""

from __future__ import annotations

import socket
import time

import torch

from spd_core.decode import decode
from spd_core.decode.ceilings import measured_ceilings
from spd_core.decode.trial import Trial, try_out
from spd_core.draws import Draws
from spd_core.law import Null
from spd_core.pairs.pair import Pair, load_pair
from workers.engine import planned_card
from workers.machine import describe_machine
from workers.memory import told_apart
from workers.records import PairSettings, TrialTask


class Trier:
    """Times ways of decoding real requests; writes nothing.

    Args:
        settings: those of the job's workers, as far as they are known.
    """

    def __init__(self, settings: PairSettings) -> None:
        self._settings = settings
        self._device = torch.device(settings.device)
        self._pair: Pair | None = None

    def _loaded(self) -> Pair:
        # Not in the constructor: there an error would reach the driver as a dead actor instead of as itself.
        if self._pair is None:
            if self._device.type == "cpu":
                torch.set_num_threads(self._settings.threads)
            planned_card(self._settings)
            self._pair = load_pair(self._settings.pair, self._device)
        return self._pair

    def ready(self) -> dict[str, str]:
        """Loads the pair and says where: ``hostname``, ``machine``, ``device``, ``threads``, ``torch``.

        On a GPU also ``cuda``, its version, and the ceilings of the card at the law's precision: ``flops`` and
        ``bytes_per_s``.

        Raises:
            PairError: unknown or damaged pair, or another one than the driver's.
        """
        self._loaded()
        on_gpu = self._device.type == "cuda"
        gpu = {}
        if on_gpu:
            found = measured_ceilings(self._device, self._settings.law.dtype)
            gpu = {
                "cuda": str(torch.version.cuda),
                "flops": f"{found.flops:.3g}",
                "bytes_per_s": f"{found.bytes_per_s:.3g}",
            }
        return {
            "hostname": socket.gethostname(),
            "machine": describe_machine(),
            "device": torch.cuda.get_device_name(self._device) if on_gpu else str(self._device),
            "threads": str(self._settings.threads),
            "torch": torch.__version__,
            **gpu,
        }

    def run(self, task: TrialTask) -> Trial:
        """Decodes the task's requests until all are made or its time is up.

        Raises:
            OutOfMemory: a batch does not fit.
        """
        labels, seeds = (torch.tensor(column, device=self._device) for column in (task.labels, task.seeds))
        with told_apart(task.choice.batch, self._device):
            return try_out(self._loaded(), self._settings.law, task.choice, labels, seeds, task.limit_s)

    def run_whole(self, task: TrialTask) -> Trial:
        """Decodes all of the task's requests and makes their images: as much memory as a worker needs.

        Raises:
            OutOfMemory: a batch does not fit.
            ValueError: the method makes no tokens.
        """
        method, batch, began = task.choice.method, task.choice.batch, time.perf_counter()
        if isinstance(method, Null):
            raise ValueError("method: got 'null', allowed: a method that makes tokens")
        with told_apart(batch, self._device):
            pair = self._loaded()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()  # of a larger batch that did not fit
            labels, seeds = (torch.tensor(column, device=self._device) for column in (task.labels, task.seeds))
            decoded = decode(pair, self._settings.law, method, labels, Draws(seeds), batch)
            for tokens in decoded.tokens.split(batch):
                pair.to_images(tokens, self._settings.law.dtype)
        return Trial(len(labels), time.perf_counter() - began)
