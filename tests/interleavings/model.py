"""The commit protocol as a model: a store of named objects, and actors written as the steps they do on it.

Every ``yield`` is one operation on the store. A shard has two files, data and evidence; what a machine makes is a
letter or two, so machines of another type make other bytes. Rows of a data file are the file itself; "empty" has none.

`Rules` are the protocol; each of them can be broken, to see that the enumeration finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable
from dataclasses import dataclass, replace

from tests.interleavings.explore import Check, Found, Objects, explore

Op = tuple[str, str, bytes]
Actor = Generator[Op, object, None]
EMPTY, FOLDERS = b"empty", ("data", "evidence")
SUCCESS = "_SUCCESS"
_TRIES = 3


@dataclass(frozen=True)
class Rules:
    """What the protocol says; the defaults hold."""

    close_first: bool = True  #: other bytes under a name: close the generation before the next one is written
    close_in_chain: bool = True  #: the void record takes the place of the commit record
    create_record: bool = True  #: the commit record is created, never replaced
    create_files: bool = True  #: so are files
    repair_by_void: bool = True  #: a repair closes; otherwise it deletes record and files, and makes the shard again
    empty_parts: str = "put"  #: or "delete", or "none": what becomes of closed names at the end
    empty_closed_only: bool = True  #: otherwise every file that no commit names is emptied, whatever may yet name it
    look_at_files: bool = True  #: before ``_SUCCESS``
    look_again: bool = True  #: after it
    success_last: bool = True  #: ``_SUCCESS`` after the empty parts
    read_after_void: bool = True  #: a driver that meets a void record reads every file again


class Failed(Exception):
    """An actor gave up in order; a fresh run resumes."""


def name(folder: str, shard: int, generation: int) -> str:
    return f"{folder}/{shard}.{generation}"


def record(shard: int, generation: int) -> str:
    return f"commit/{shard}.{generation}"


def chain_of(objects: Objects, shard: int) -> list[bytes]:
    """The records of a shard, in order."""
    chain: list[bytes] = []
    while (raw := objects.get(record(shard, len(chain)))) is not None:
        chain.append(raw)
    return chain


def commit_bytes(letter: bytes, closed: Iterable[int]) -> bytes:
    return b"commit " + letter + b" " + ",".join(map(str, closed)).encode()


def closed_by(raw: bytes) -> tuple[int, ...]:
    text = raw.split(b" ")[2]
    return tuple(int(part) for part in text.split(b",") if part)


def is_commit(raw: bytes | None) -> bool:
    return raw is not None and raw.startswith(b"commit ")


def files_of(shard: int, generation: int, raw: bytes) -> dict[str, bytes]:
    """What a commit record says lies where."""
    letter = raw.split(b" ")[1]
    return {name(folder, shard, generation): letter for folder in FOLDERS}


# Programs


def _chain(shard: int) -> Generator[Op, object, list[bytes]]:
    chain: list[bytes] = []
    while True:
        raw = yield ("read", record(shard, len(chain)), b"")
        if raw is None:
            return chain
        assert isinstance(raw, bytes)
        chain.append(raw)


def _void(chain: list[bytes], shard: int) -> Generator[Op, object, object]:
    """Closes what the chain says."""
    last = chain[-1] if chain else None
    if last is None or last.startswith(b"void "):
        closed = (*(closed_by(last) if last else ()), len(chain))
    elif is_commit(last):
        closed = (*closed_by(last), len(chain) - 1)
    else:
        closed = tuple(range(len(chain)))
    raw = b"void - " + ",".join(map(str, closed)).encode()
    return (yield ("create", record(shard, len(chain)), raw))


def attempt(rules: Rules, shard: int, letter: bytes) -> Generator[Op, object, None]:
    """Makes a shard and commits it."""
    for _ in range(_TRIES):
        chain = yield from _chain(shard)
        last = chain[-1] if chain else None
        if is_commit(last):
            return
        if last is not None and not last.startswith(b"void "):
            yield from _void(chain, shard)
            continue
        generation, closed = len(chain), closed_by(last) if last else ()
        skipped = 0
        while True:
            taken = False
            for folder in FOLDERS:
                path = name(folder, shard, generation + skipped)
                if not rules.create_files:
                    yield ("put", path, letter)
                elif not (yield ("create", path, letter)) and (yield ("read", path, b"")) != letter:
                    taken = True
                    break
            if not taken or rules.close_first:
                break
            skipped += 1  # the broken rule: on to the next names at once
            closed = (*closed, generation + skipped - 1)
        if taken:
            if rules.close_in_chain:
                yield from _void(chain, shard)
            else:
                yield ("put", f"void/{shard}.{generation}", b"")
                yield ("create", record(shard, generation), b"void - " + str(generation).encode())
            continue
        raw = commit_bytes(letter, closed)
        path = record(shard, generation)
        if skipped:
            # Files of later names, one record: the record says where.
            raw = commit_bytes(letter, closed) + b" at " + str(generation + skipped).encode()
        if not rules.create_record:
            yield ("put", path, raw)
            return
        if (yield ("create", path, raw)):
            return
    raise Failed("other attempts are in the way")


def where(shard: int, generation: int, raw: bytes) -> dict[str, bytes]:
    parts = raw.split(b" at ")
    return files_of(shard, int(parts[1]) if len(parts) > 1 else generation, parts[0])


def _look(shards: int) -> Generator[Op, object, dict[int, tuple[int, bytes]]]:
    """The last records by shard, with their generations, from one listing and then reads, as a driver does it."""
    listed = yield ("list", "commit/", b"")
    assert isinstance(listed, tuple)
    found: dict[int, tuple[int, bytes]] = {}
    for shard in range(shards):
        generations = [int(path.partition(".")[2]) for path in listed if path.startswith(f"commit/{shard}.")]
        if generations:
            raw = yield ("read", record(shard, max(generations)), b"")
            if isinstance(raw, bytes):
                found[shard] = (max(generations), raw)
    return found


def _damaged(found: dict[int, tuple[int, bytes]]) -> Generator[Op, object, list[int]]:
    """Shards whose record or files are not what was committed."""
    damaged = []
    for shard, (generation, raw) in found.items():
        if raw.startswith(b"void "):
            continue
        whole = is_commit(raw)
        for path, letter in where(shard, generation, raw).items() if whole else ():
            whole = whole and (yield ("read", path, b"")) == letter
        if not whole:
            damaged.append(shard)
    return damaged


def _missing(found: dict[int, tuple[int, bytes]]) -> Generator[Op, object, list[int]]:
    """Shards whose files are absent or of another size; what is flipped inside them stays unseen."""
    missing = []
    for shard, (generation, raw) in found.items():
        for path, letter in where(shard, generation, raw).items() if is_commit(raw) else ():
            if (yield ("size", path, b"")) != len(letter):
                missing.append(shard)
    return missing


def _repair(rules: Rules, shard: int) -> Generator[Op, object, None]:
    while True:
        chain = yield from _chain(shard)
        if not chain or chain[-1].startswith(b"void "):
            return
        if not (yield from _damaged({shard: (len(chain) - 1, chain[-1])})):
            return
        if not rules.repair_by_void:
            yield ("delete", record(shard, len(chain) - 1), b"")
            for folder in FOLDERS:
                yield ("delete", name(folder, shard, len(chain) - 1), b"")
            return
        yield ("delete", SUCCESS, b"")
        yield from _void(chain, shard)


def driver(rules: Rules, shards: int, letter: bytes) -> Generator[Op, object, None]:
    """Makes what is missing or damaged, and ends the dataset."""
    found = yield from _look(shards)
    todo = [shard for shard in range(shards) if shard not in found or not is_commit(found[shard][1])]
    # A dataset is read again that has all its shards, or one that was closed and may not be the only damaged one.
    closed = rules.read_after_void and any(raw.startswith(b"void ") for _, raw in found.values())
    damaged = yield from (_missing if todo and not closed else _damaged)(found)
    if damaged or todo:
        for shard in sorted({*damaged}):
            yield from _repair(rules, shard)
        yield ("delete", SUCCESS, b"")
        for shard in sorted({*damaged, *todo}):
            yield from attempt(rules, shard, letter)
    yield from finish(rules, shards)


def finish(rules: Rules, shards: int) -> Generator[Op, object, None]:
    """Ends a dataset whose shards are all committed."""
    found = yield from _look(shards)
    if len(found) < shards or not all(is_commit(raw) for _, raw in found.values()):
        raise Failed("a shard is not committed")
    if rules.look_at_files and (yield from _missing(found)):
        raise Failed("a shard is damaged")
    manifest = b"|".join(b"%d.%d %s" % (shard, *found[shard]) for shard in sorted(found))
    if not rules.success_last:
        yield from _publish(manifest)
    yield from _empty(rules, found)
    if rules.success_last:
        yield from _publish(manifest)
    if rules.look_again:
        listed = yield ("list", "commit/", b"")
        assert isinstance(listed, tuple)
        latest = {shard: generation for shard, (generation, _) in found.items()}
        if any(int(path.partition(".")[2]) > latest[int(path[7 : path.index(".")])] for path in listed):
            yield ("delete", SUCCESS, b"")
            raise Failed("another driver makes a shard again")
        if (yield ("read", SUCCESS, b"")) != manifest:
            raise Failed("another driver ends this too")


def _publish(manifest: bytes) -> Generator[Op, object, None]:
    if not (yield ("create", SUCCESS, manifest)) and (yield ("read", SUCCESS, b"")) != manifest:
        yield ("put", SUCCESS, manifest)


def _empty(rules: Rules, found: dict[int, tuple[int, bytes]]) -> Generator[Op, object, None]:
    if rules.empty_parts == "none":
        return
    paths = [
        name(folder, shard, each) for shard, (_, raw) in found.items() for each in closed_by(raw) for folder in FOLDERS
    ]
    if not rules.empty_closed_only:
        listed = yield ("list", "data/", b"")
        assert isinstance(listed, tuple)
        live = {path for shard, (generation, raw) in found.items() for path in where(shard, generation, raw)}
        paths += [path for path in listed if path not in live and path not in paths]
    for path in paths:
        yield ("put" if rules.empty_parts == "put" else "delete", path, EMPTY)


# The execution


class ModelRun:
    """Actors over a dictionary."""

    def __init__(self, objects: Objects, actors: list[Callable[[], Actor]], swallowed: frozenset[str]) -> None:
        self.objects = dict(objects)
        self._swallowed = set(swallowed)
        self._actors = [make() for make in actors]
        self._outcomes: list[str | None] = [None] * len(actors)
        self._pending: list[Op | None] = [None] * len(actors)
        self._histories: list[Hashable] = [()] * len(actors)
        for index in range(len(actors)):
            self._advance(index, None)

    def _advance(self, index: int, answer: object) -> None:
        try:
            self._pending[index] = self._actors[index].send(answer)
        except StopIteration:
            self._pending[index], self._outcomes[index] = None, ""
        except Failed as error:
            self._pending[index], self._outcomes[index] = None, str(error)

    def enabled(self) -> list[int]:
        return [index for index, op in enumerate(self._pending) if op is not None]

    def step(self, actor: int) -> None:
        op = self._pending[actor]
        assert op is not None
        answer = self._do(*op)
        self._histories[actor] = hash((self._histories[actor], op, answer))
        self._advance(actor, answer)

    def _do(self, action: str, path: str, data: bytes) -> object:
        if action == "read":
            return self.objects.get(path)
        if action == "list":
            return tuple(sorted(each for each in self.objects if each.startswith(path)))
        if action == "delete":
            self.objects.pop(path, None)
            return True
        if action == "size":
            return len(self.objects[path]) if path in self.objects else None
        if action == "create" and path in self.objects:
            return False
        if path in self._swallowed:
            self._swallowed.remove(path)
            return True
        self.objects[path] = data
        return True

    def state(self) -> Hashable:
        return (frozenset(self.objects.items()), frozenset(self._swallowed), tuple(self._histories))

    def outcomes(self) -> list[str | None]:
        return list(self._outcomes)

    def close(self) -> None:
        pass


# What must hold


def problems(objects: Objects, shards: int, broken: frozenset[str] = frozenset()) -> list[str]:
    """What is wrong with a store at any moment.

    Args:
        objects: of the store.
        shards: of the job.
        broken: files that somebody damaged before the actors began.
    """
    found = []
    live: dict[str, bytes] = {}
    committed = 0
    for shard in range(shards):
        chain = chain_of(objects, shard)
        if not chain or not is_commit(chain[-1]):
            continue
        committed += 1
        files = where(shard, len(chain) - 1, chain[-1])
        live |= files
        found += [
            f"{path} of a commit is {objects.get(path)!r}"
            for path, letter in files.items()
            if objects.get(path) != letter and path not in broken
        ]
    return found


def checker(shards: int, before: Objects, broken: frozenset[str], drivers: frozenset[int], one_reads: bool) -> Check:
    """What is wrong in a state of a job of ``shards`` that began with the store ``before``.

    With ``one_reads`` of two drivers only one reads a flipped file. The other may end the dataset, which shows nothing
    but its size, while the first repairs it: then ``_SUCCESS`` is held to be right when both have ended in order.
    """

    unread = {path: before[path] for path in broken if path in before} if one_reads else {}

    def check(objects: Objects, outcomes: list[str | None], ended: int | None) -> list[str]:
        found = problems(objects, shards, broken)
        if one_reads:
            over = outcomes == [""] * len(outcomes)
            return found + (unfinished(objects, shards, unread) if over else [])
        if SUCCESS in objects and objects[SUCCESS] != before.get(SUCCESS):
            found += unfinished(objects, shards, unread)
        if ended in drivers and outcomes[ended] == "":
            found += [f"a driver ended in order: {problem}" for problem in unfinished(objects, shards, unread)]
        return found

    return check


def recover(rules: Rules, shards: int, objects: Objects, unread: Objects) -> list[str]:
    """What is wrong after a fresh driver, of the same platform or of another, ran alone on a store."""
    found = []
    for letter in (b"A", b"ZZZ"):
        run = ModelRun(objects, [lambda letter=letter: driver(rules, shards, letter)], frozenset())
        while run.enabled():
            run.step(0)
        found += [f"a driver ended with {end!r}" for end in run.outcomes() if end]
        found += unfinished(run.objects, shards, unread)
    return found


def unfinished(objects: Objects, shards: int, unread: Objects) -> list[str]:
    """Why ``_SUCCESS`` is missing, or should not be there.

    Args:
        objects: of the store.
        shards: of the job.
        unread: files flipped before, of which a driver that has shards to make sees the size alone.
    """
    if SUCCESS not in objects:
        return ["there is no _SUCCESS"]
    found, last = [], []
    for shard in range(shards):
        chain = chain_of(objects, shard)
        if not chain or not is_commit(chain[-1]):
            return [f"_SUCCESS over a hole: shard {shard} is not committed"]
        last.append(b"%d.%d %s" % (shard, len(chain) - 1, chain[-1]))
        for path, letter in where(shard, len(chain) - 1, chain[-1]).items():
            if objects.get(path) not in (letter, unread.get(path, letter)):
                found.append(f"_SUCCESS over a hole: {path} is {objects.get(path)!r}")
    if objects[SUCCESS] != b"|".join(last):
        found.append("_SUCCESS lists other records")
    for folder in FOLDERS:
        rows = [path for path in objects if path.startswith(f"{folder}/") and objects[path] != EMPTY]
        if len(rows) != shards:
            found.append(f"{folder}/* reads {len(rows)} shards: {sorted(rows)}")
    return found


def broken_rules() -> dict[str, Rules]:
    """The protocol with one rule broken."""
    rules = Rules()
    return {
        "the next generation is written before the last one is closed": replace(rules, close_first=False),
        "a generation is closed beside the chain, not in it": replace(rules, close_in_chain=False),
        "the commit record is put, not created": replace(rules, create_record=False),
        "files are put, not created": replace(rules, create_files=False),
        "a repair deletes record and files": replace(rules, repair_by_void=False),
        "closed names are deleted, not emptied": replace(rules, empty_parts="delete"),
        "closed names are left as they are": replace(rules, empty_parts="none"),
        "every file that no commit names is emptied": replace(rules, empty_closed_only=False),
        "a shard that was closed has no other read again": replace(rules, read_after_void=False),
        "_SUCCESS without a look at the files": replace(rules, look_at_files=False),
        "_SUCCESS before closed names are emptied": replace(rules, success_last=False),
    }


# The situations


def finished(rules: Rules, shards: int) -> Objects:
    """A finished dataset, made by one driver of platform A."""
    run = ModelRun({}, [lambda: driver(rules, shards, b"A")], frozenset())
    while run.enabled():
        run.step(0)
    return run.objects


@dataclass(frozen=True)
class Situation:
    """What lies in the store, and who acts on it."""

    name: str
    before: Objects
    actors: tuple[tuple[str, bytes], ...]  #: attempt or driver, and its platform
    shards: int = 1
    broken: frozenset[str] = frozenset()  #: files that are damaged before
    one_reads: bool = False  #: see `checker`
    swallowed: frozenset[str] = frozenset()  #: the first create of these is answered and stores nothing

    @property
    def unread(self) -> Objects:
        return {path: self.before[path] for path in self.broken if path in self.before} if self.one_reads else {}

    def explore(self, rules: Rules, preemptions: int | None = None, first: bool = False) -> Found:
        makers = [self._maker(rules, kind, letter) for kind, letter in self.actors]
        drivers = frozenset(index for index, (kind, _) in enumerate(self.actors) if kind == "driver")
        return explore(
            lambda: ModelRun(self.before, makers, self.swallowed),
            checker(self.shards, self.before, self.broken | self.swallowed, drivers, self.one_reads),
            lambda objects: recover(rules, self.shards, objects, self.unread),
            preemptions,
            first,
        )

    def _maker(self, rules: Rules, kind: str, letter: bytes) -> Callable[[], Actor]:
        if kind == "attempt":
            return lambda: attempt(rules, 0, letter)
        return lambda: driver(rules, self.shards, letter)


def situations() -> list[Situation]:
    """All of them, with two or three actors."""
    whole = finished(Rules(), 1)
    data, commit = name("data", 0, 0), record(0, 0)
    vanished = {path: raw for path, raw in whole.items() if path != data}
    flipped, unreadable = {**whole, data: b"?"}, {**whole, commit: b"?"}
    unrecorded = {path: raw for path, raw in whole.items() if path != commit}
    left = {data: b"A"}
    both = finished(Rules(), 2) | {data: b"?", name("data", 1, 0): b"?"}
    half = {path: raw for path, raw in flipped.items() if path != SUCCESS}
    one, other = ("driver", b"A"), ("driver", b"BB")
    late, strange = ("attempt", b"A"), ("attempt", b"BB")
    gone, two = frozenset({data}), frozenset({data, name("data", 1, 0)})
    return [
        Situation("two attempts of one platform and a driver", {}, (late, late, one)),
        Situation("two attempts of two platforms and a driver", {}, (late, strange, one)),
        Situation("an attempt and two drivers of one platform", {}, (late, one, one)),
        Situation("an attempt and two drivers of another platform", {}, (late, other, other)),
        Situation("a dead attempt's file, an attempt and a driver", left, (strange, other)),
        Situation("a dead attempt's file, two attempts and a driver", left, (late, strange, other)),
        Situation("two repairs of a file that is gone", vanished, (one, one), broken=gone),
        Situation("two repairs of it, of two platforms", vanished, (one, other), broken=gone),
        Situation("three repairs of a flipped file", flipped, (one, other, one), broken=gone),
        Situation("a repair of two flipped files", both, (one,), 2, broken=two),
        Situation("two repairs of two flipped files", both, (one, one), 2, broken=two),
        Situation("two repairs of a damaged record, of two platforms", unreadable, (one, other)),
        Situation("two repairs of a record that is gone, of two platforms", unrecorded, (one, other)),
        Situation("a late attempt and two repairs of a file that is gone", vanished, (late, one, other), broken=gone),
        Situation("two drivers of two platforms, two shards", {}, (one, other), shards=2),
        Situation("a create that stores nothing, and two drivers", {}, (one, other), swallowed=gone),
        Situation("a flipped file beside a shard to make, a driver", half, (one, one), 2, gone, one_reads=True),
        Situation("a flipped file beside a shard to make, two platforms", half, (one, other), 2, gone, one_reads=True),
    ]
