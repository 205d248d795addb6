"""How much work a pickle asks for, found out from its operations alone, before anything in it is made.

A tuple that holds another twice, forty times over, is a few hundred bytes; its hash, or its text in an error, takes
2^40 steps. So the operations are followed on a stack of empty nodes, and the sizes of what is hashed, called or passed
to a call are added up.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import IO

#: Nodes that may be hashed or passed to calls, at least, and for each operation of the pickle.
_FREE, _PER_OPERATION = 1_000_000, 100
#: Containers inside each other: C code that hashes a tuple calls itself for each.
_DEEPEST = 500
_CHARACTERS = 16  #: of a text that count as one node
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_IN_PLACE = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ"})


class Unfolds(ValueError):
    """A pickle that asks for more than its size lets expect."""


class _Node:
    """A value: what it is made of, and once it is measured its size, as a tree, and its depth."""

    __slots__ = ("depth", "parts", "size", "under_way")

    def __init__(self, parts: list[_Node], size: int = 1) -> None:
        self.parts = parts
        self.size = size  # of itself alone, until `_measure`
        self.depth = 0  # 0: not measured
        self.under_way = False


_MARK = _Node([])
_PLAIN = _Node([])  #: every number, short text and name


def check(file: IO[bytes], pickles: int = 1) -> None:
    """Refuses pickles that ask for too much.

    Args:
        file: at the beginning of the first.
        pickles: how many follow each other, at most.

    Raises:
        Unfolds: they do.
        ValueError, IndexError, KeyError: they are none.
    """
    for _ in range(pickles):
        operations, used = _follow(file)
        most = _FREE + _PER_OPERATION * operations
        total = 0
        for node in used:
            total += _measured(node)
            if total > most:
                raise Unfolds("a value in it holds others so often that it unfolds to more than the file")


def _follow(file: IO[bytes]) -> tuple[int, list[_Node]]:
    """The operations of one pickle, and the values that are hashed, called or passed to a call."""
    stack: list[_Node] = []
    memo: dict[int, _Node] = {}
    used: list[_Node] = []
    operations = 0
    for op, argument, _ in pickletools.genops(file):
        operations += 1
        if op.name in _GETS:
            stack.append(memo[int(argument or 0)])
        elif op.name in _PUTS:
            memo[int(argument or 0)] = stack[-1]
        elif op.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op.name == "DUP":
            stack.append(stack[-1])
        elif op.name == "MARK":
            stack.append(_MARK)
        else:
            taken = list(_taken(stack, op))
            if op.name in _IN_PLACE:
                target, *added = taken
                if target is _PLAIN:
                    raise ValueError("something is put into a plain value")
                target.parts += added
                stack.append(target)
                used += added[::2] if op.name.startswith("SETITEM") else added if op.name == "ADDITEMS" else []
            elif op.stack_after:
                long = len(argument) // _CHARACTERS if isinstance(argument, (str, bytes)) else 0
                plain = not (taken or long or op.name.startswith("EMPTY_"))
                stack.append(_PLAIN if plain else _Node(taken, 1 + long))
                used += taken if op.name in _CALLS else []
    return operations, used


def _taken(stack: list[_Node], op: pickletools.OpcodeInfo) -> Iterator[_Node]:
    """What an operation takes off the stack, the lowest first."""
    above: list[_Node] = []
    count = len(op.stack_before)
    if pickletools.markobject in op.stack_before:
        count = op.stack_before.index(pickletools.markobject)
        while (top := stack.pop()) is not _MARK:
            above.append(top)
    below = [stack.pop() for _ in range(count)]
    yield from reversed(below)
    yield from reversed(above)


def _measured(root: _Node) -> int:
    """The size of a value as a tree.

    Raises:
        Unfolds: it holds itself, or is too deep.
    """
    waiting = [root]
    while waiting:
        node = waiting[-1]
        if node.depth:
            waiting.pop()
        elif node.under_way:
            waiting.pop()
            node.depth = 1 + max((part.depth for part in node.parts), default=0)
            node.size += sum(part.size for part in node.parts)
            if node.depth > _DEEPEST:
                raise Unfolds(f"more than {_DEEPEST} values inside each other")
        else:
            node.under_way = True
            if any(part.under_way and not part.depth for part in node.parts):
                raise Unfolds("a value in it holds itself")
            waiting += [part for part in node.parts if not part.depth]
    return root.size
