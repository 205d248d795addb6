"""What is killed or paused, and when: at a step of the protocol, before or after it takes effect, or at any moment."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from workers import layout

CAUSES = ("actor", "raylet", "driver", "store")
#: Share of the kills.
WEIGHTS = {"actor": 0.25, "raylet": 0.2, "driver": 0.3, "store": 0.25}
#: What may be paused, and how often that happens instead of a kill.
PAUSED, PAUSES = ("actor", "driver"), 0.25
LONGEST_PAUSE_S = 60.0


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
#: Of a driver and its workers that mend a finished dataset.
REPAIR = (
    Step("void create", "driver", "create", rf"{layout.COMMITS}/\d+\.r1"),
    Step("_SUCCESS delete", "driver", "delete", layout.SUCCESS),
    Step("data create again", "actor", "create", r"data/part\S+\.r2"),
    Step("commit create again", "actor", "create", rf"{layout.COMMITS}/\d+\.r2"),
    Step("empty part write", "driver", "replace", "data/part"),
    Step("_SUCCESS create", "driver", "create", layout.SUCCESS),
)
STEPS = {"early": EARLY, "middle": MIDDLE, "late": LATE, "repair": REPAIR}


@dataclass(frozen=True)
class Kill:
    """One kill or pause to come; without a step it comes after a while."""

    cause: str
    step: Step | None
    when: str = ""  #: before or after the step
    delay_s: float = 0.0
    pause_s: float = 0.0  #: the victim is stopped for so long instead

    @property
    def label(self) -> str:
        return f"{self.cause} paused" if self.pause_s else self.cause

    @property
    def name(self) -> str:
        return f"{self.when} {self.step.name}" if self.step else "any moment"


def next_kill(
    draw: random.Random, done: dict[str, int], at: dict[tuple[str, str], int], wanted: int, phase: str
) -> Kill:
    """A kill of the phase, of a cause that is behind its share, or a pause; at a step hit least so far.

    Args:
        draw: what decides.
        done: kills so far, by cause.
        at: kills and pauses so far, by cause (`Kill.label`) and `Kill.name`.
        wanted: kills in all.
        phase: how far the dataset is: early, middle, late, or repair.
    """
    # Early workers have nothing to do yet, late ones nothing any more; a repair is over too soon for a raylet.
    causes = {"middle": CAUSES, "repair": ("actor", "driver", "store")}.get(phase, ("driver", "store"))
    paused = [cause for cause in PAUSED if cause in causes]
    pause = 0.0
    if draw.random() < PAUSES:
        cause = draw.choice(paused)
        # As many short ones as long ones.
        pause = math.exp(draw.uniform(0.0, math.log(LONGEST_PAUSE_S)))
    else:
        left = {cause: max(0.0, WEIGHTS[cause] * wanted - done.get(cause, 0)) for cause in causes}
        cause = draw.choices(list(left), list(left.values()) if sum(left.values()) else None)[0]
    steps = [step for step in STEPS[phase] if cause not in PAUSED or step.by == cause]
    if not steps or draw.random() < (0.4 if phase == "middle" else 0.1):
        return Kill(cause, None, delay_s=draw.uniform(0.0, 3.0), pause_s=pause)
    kills = [Kill(cause, step, when, pause_s=pause) for step in steps for when in ("before", "after")]
    draw.shuffle(kills)
    return min(kills, key=lambda kill: at.get((kill.label, kill.name), 0))
