"""What is killed, and when: at a step of the protocol, before or after it takes effect, or at any moment."""

from __future__ import annotations

import random
from dataclasses import dataclass

from workers import layout

CAUSES = ("actor", "raylet", "driver", "store")
#: Share of the kills.
WEIGHTS = {"actor": 0.25, "raylet": 0.2, "driver": 0.3, "store": 0.25}


@dataclass(frozen=True)
class Step:
    """An operation on the store that a kill can be tied to."""

    name: str
    by: str  #: actor or driver
    action: str
    path: str


#: Of a driver that has just begun.
EARLY = (
    Step("plan look", "driver", "look", layout.PLAN),
    Step("commit list", "driver", "list", layout.COMMITS),
    Step("probe create", "driver", "create", r"\.probe-"),
    Step("probe delete", "driver", "delete", r"\.probe-"),
    Step("mark write", "driver", "replace", layout.DRIVER),
    Step("plan create", "driver", "create", layout.PLAN),
    Step("_SUCCESS delete", "driver", "delete", layout.SUCCESS),
)
#: Of a worker.
MIDDLE = (
    Step("commit look", "actor", "look", layout.COMMITS),
    Step("data create", "actor", "create", "data/part"),
    Step("acceptance create", "actor", "create", "acceptance/part"),
    Step("commit create", "actor", "create", layout.COMMITS),
)
#: Of a driver whose shards are all committed.
LATE = (
    Step("commit list", "driver", "list", layout.COMMITS),
    Step("commit read", "driver", "read", layout.COMMITS),
    Step("_SUCCESS delete", "driver", "delete", layout.SUCCESS),
    Step("report read", "driver", "read", "data/part"),
    Step("report.json write", "driver", "replace", layout.REPORT_JSON),
    Step("report.html write", "driver", "replace", layout.REPORT_HTML),
    Step("card write", "driver", "replace", layout.CARD),
    Step("_SUCCESS create", "driver", "create", layout.SUCCESS),
)


@dataclass(frozen=True)
class Kill:
    """One kill to come; without a step it comes after a while."""

    cause: str
    step: Step | None
    when: str = ""  #: before or after the step
    delay_s: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.when} {self.step.name}" if self.step else "any moment"


def next_kill(
    draw: random.Random, done: dict[str, int], at: dict[tuple[str, str], int], wanted: int, phase: str
) -> Kill:
    """A kill of the phase (early, middle or late), of a cause that is behind its share, at a step hit least so far.

    Args:
        draw: what decides.
        done: kills so far, by cause.
        at: the same, by cause and `Kill.name`.
        wanted: kills in all.
        phase: how far the dataset is.
    """
    left = {cause: max(0.0, WEIGHTS[cause] * wanted - done.get(cause, 0)) for cause in CAUSES}
    if phase != "middle":
        # Workers have nothing to do yet, or nothing any more.
        left = {cause: left[cause] for cause in ("driver", "store")}
    if not sum(left.values()):
        left = dict.fromkeys(left, 1.0)
    cause = draw.choices(list(left), list(left.values()))[0]
    steps = {"early": EARLY, "middle": MIDDLE, "late": LATE}[phase]
    if (phase == "middle" and cause == "driver") or draw.random() < (0.4 if phase == "middle" else 0.1):
        return Kill(cause, None, delay_s=draw.uniform(0.0, 3.0))
    kills = [Kill(cause, step, when) for step in steps for when in ("before", "after")]
    draw.shuffle(kills)
    return min(kills, key=lambda kill: at.get((cause, kill.name), 0))
