"""Ray for tests that need no process: real workers, called one after the other in this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from tests.faults.filesystem import Crash


class RayError(Exception):
    """Any but the two below is a lost actor."""


class RayTaskError(RayError):
    """An actor's method raised ``cause``."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GetTimeoutError(RayError):
    pass


@dataclass(eq=False)
class Ref:
    outcome: Any


class _Method:
    def __init__(self, actor: _Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *args: Any) -> Ref:
        if self._actor.dead:
            return Ref(RayError("The actor died unexpectedly"))
        try:
            return Ref(getattr(self._actor.worker, self._name)(*args))
        except Crash:
            self._actor.dead = True
            return Ref(RayError("The actor died unexpectedly"))
        except Exception as error:
            return Ref(RayTaskError(error))


class _Actor:
    def __init__(self, worker: Any) -> None:
        self.worker, self.dead = worker, False

    def __getattr__(self, name: str) -> _Method:
        return _Method(self, name)


class InlineRay:
    """What a job uses of the ray module."""

    _private = SimpleNamespace(state=SimpleNamespace(state=SimpleNamespace()))
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError)

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *args: _Actor(kind(*args))))

    def wait(self, refs: list[Ref], num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Ref, timeout: float) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def kill(self, actor: _Actor, no_restart: bool) -> None:
        actor.dead = True

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "NodeID": "here", "Resources": {"CPU": 2.0}}]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}


@contextmanager
def inline_ray(_workers: Any) -> Iterator[InlineRay]:
    """Stands for `jobs.run.cluster.running_ray`."""
    yield InlineRay()
