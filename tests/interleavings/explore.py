"""Every interleaving of a few actors over the operations of a store, with each of them dying or paused at every point.

An actor is a program whose only contact with the others is the store, and whose next operation follows from the answers
it has had. So a state is what lies in the store and the answers of each actor, and states that are reached by
different orders are looked at once. A death is an actor that is never scheduled again and a pause one that is scheduled
later: both are prefixes of the orders that are enumerated, and what must hold is checked in every state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

Objects = dict[str, bytes]


class Run(Protocol):
    """One execution, which the explorer advances operation by operation."""

    objects: Objects

    def enabled(self) -> list[int]:
        """Actors that have an operation to do."""

    def step(self, actor: int) -> None:
        """Lets an actor do its next operation."""

    def state(self) -> Hashable:
        """What lies in the store and what every actor has seen."""

    def outcomes(self) -> list[str | None]:
        """How each actor ended: "" in order, None not yet, otherwise what it raised."""

    def close(self) -> None:
        """Ends what still runs."""


@dataclass
class Found:
    """What was enumerated, and what was wrong."""

    states: int = 0
    steps: int = 0  #: operations from one state to another
    runs: int = 0  #: executions from the start
    deaths: int = 0  #: states times the actors that may die there, or be paused
    ends: int = 0  #: states in which nobody has anything left to do
    stores: set[Hashable] = field(default_factory=set)  #: different contents of the store, each recovered from
    violations: list[str] = field(default_factory=list)
    orders: int = 0  #: interleavings that the states stand for
    complete: bool = True  #: nothing was left out because of a bound

    def line(self, name: str) -> str:
        bound = "" if self.complete else " (bounded)"
        return (
            f"{name}: {self.states} states, {self.steps} steps, {self.orders:.3g} interleavings{bound}, {self.deaths} "
            f"deaths and pauses, {len(self.stores)} stores recovered from, {len(self.violations)} violations"
        )


#: What is wrong in a state: from the store, how the actors ended, and which of them ended just now.
Check = Callable[[Objects, list[str | None], int | None], Iterable[str]]


def explore(
    start: Callable[[], Run],
    check: Check,
    recover: Callable[[Objects], Iterable[str]] | None = None,
    preemptions: int | None = None,
    first: bool = False,
) -> Found:
    """Enumerates the interleavings of a fresh execution.

    Args:
        start: a new execution, always the same.
        check: what is wrong in a state.
        recover: what is wrong after everybody died and a fresh driver ran, by the store they left.
        preemptions: switches away from an actor that could go on, at most; None: any number, which is complete.
        first: stop at the first violation.
    """
    found, seen = Found(complete=preemptions is None), {}  # type: ignore[var-annotated]
    successors: dict[Hashable, list[Hashable]] = {}
    stack: list[tuple[tuple[int, ...], Hashable]] = [((), None)]
    while stack and not (first and found.violations):
        path, came_from = stack.pop()
        run, found.runs = start(), found.runs + 1
        used, last = 0, None
        for actor in path:
            used += last is not None and actor != last and last in run.enabled()
            run.step(actor)
            last = actor
        while True:
            state = run.state() if preemptions is None else (run.state(), last)
            if came_from is not None:
                successors[came_from].append(state)
                found.steps += 1
            # Reached with fewer switches before, nothing new can follow.
            if seen.get(state, 1 << 30) <= used:
                break
            if state not in seen:
                ended = last if last is not None and run.outcomes()[last] is not None else None
                _look(found, run, (path, ended), check, recover)
            seen[state] = 0 if preemptions is None else used
            enabled = run.enabled()
            successors[state] = []
            if not enabled:
                found.ends += 1
                break
            stay = last if last in enabled else enabled[0]
            for actor in enabled:
                costs = last in enabled and actor != last
                if actor != stay and (preemptions is None or used + costs <= preemptions):
                    stack.append(((*path, actor), state))
            run.step(stay)
            path, last, came_from = (*path, stay), stay, state
        run.close()
    found.states = len(seen)
    found.orders = _count(successors)
    return found


def _look(
    found: Found,
    run: Run,
    at: tuple[tuple[int, ...], int | None],
    check: Check,
    recover: Callable[[Objects], Iterable[str]] | None,
) -> None:
    outcomes, (path, ended) = run.outcomes(), at
    found.deaths += outcomes.count(None)
    problems = list(check(run.objects, outcomes, ended))
    left = frozenset(run.objects.items())
    if recover is not None and left not in found.stores:
        problems += [f"after everybody died: {problem}" for problem in recover(dict(run.objects))]
    found.stores.add(left)
    found.violations += [f"{problem} (order {''.join(map(str, path))})" for problem in problems]


def _count(successors: dict[Hashable, list[Hashable]]) -> int:
    """Paths from the first state to one without successors; the states form no circle, since every step is seen."""
    if not successors:
        return 0
    ways: dict[Hashable, int] = {}
    first = next(iter(successors))
    stack = [first]
    while stack:
        state = stack[-1]
        if state in ways:
            stack.pop()
            continue
        nexts = successors.get(state, [])
        if missing := [each for each in nexts if each not in ways]:
            stack += missing
            continue
        ways[state] = sum(ways[each] for each in nexts) or 1
        stack.pop()
    return ways[first]
