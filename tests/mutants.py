"""Functions with one line changed, for tests that must notice."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any


def mutant(function: Callable[..., Any], old: str, new: str, **names: Any) -> Callable[..., Any]:
    """The function with ``old``, which its source holds once, replaced; ``names`` are what ``new`` may use."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{function.__name__} holds {old!r} {source.count(old)} times"
    scope = {**inspect.getmodule(function).__dict__, **names}
    exec(compile("from __future__ import annotations\n" + source.replace(old, new), "<mutant>", "exec"), scope)
    return scope[function.__name__]
