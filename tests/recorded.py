"""Stands in for `ray.util.metrics`: remembers what is recorded."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.util import metrics

import workers.metrics


@dataclass
class Recorded:
    """Values by name and labels, those of ``dataset`` left out."""

    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    datasets: set[str] = field(default_factory=set)
    records: int = 0

    def __getitem__(self, key: str | tuple[str, ...]) -> float:
        return self.values.get((key,) if isinstance(key, str) else key, 0.0)

    def _record(self, name: str, keys: tuple[str, ...], value: float, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == set(keys), f"Ray wants a value for each label: {keys}, got {tags}"
        assert isinstance(value, float)
        self.records += 1
        self.datasets.add(tags["dataset"])
        return (name, *(tags[key] for key in keys if key != "dataset"))

    def counter(self, name: str, _help: str, keys: tuple[str, ...]) -> SimpleNamespace:
        def inc(value: float, tags: dict[str, str]) -> None:
            assert value > 0, "Ray refuses anything else"
            key = self._record(name, keys, value, tags)
            self.values[key] = self.values.get(key, 0.0) + value

        return SimpleNamespace(inc=inc)

    def gauge(self, name: str, _help: str, keys: tuple[str, ...]) -> SimpleNamespace:
        def set_to(value: float, tags: dict[str, str]) -> None:
            self.values[self._record(name, keys, value, tags)] = value

        return SimpleNamespace(set=set_to)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What is recorded from here on, as if a Ray were connected."""
    made = Recorded()
    monkeypatch.setattr(workers.metrics, "connected", lambda: True)
    monkeypatch.setattr(metrics, "Counter", made.counter)
    monkeypatch.setattr(metrics, "Gauge", made.gauge)
    return made
