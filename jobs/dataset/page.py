"""What the pages share: one look, the words with what they mean, round numbers for the axes."""

from __future__ import annotations

import math
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from jobs.words import phrases as words
from jobs.words.glossary import GLOSSARY
from jobs.words.progress import duration


class Words:
    """The glossary of one page: whatever it links stands at its foot, for touch, keyboard, screen reader and paper."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def __call__(self, word: str, text: str = "") -> Markup:
        """A link to what a word means, with that as its hover text.

        Args:
            word: of the glossary.
            text: shown in its place.

        Raises:
            KeyError: the glossary has no such word.
        """
        meaning = GLOSSARY[word]
        self._used.add(word)
        return Markup('<a class="term" href="#{}" title="{}">{}</a>').format(self.anchor(word), meaning, text or word)

    @staticmethod
    def anchor(word: str) -> str:
        """Where it is explained."""
        return "word-" + "".join(char if char.isalnum() else "-" for char in word.lower())

    @property
    def used(self) -> list[tuple[str, str]]:
        """Words that the page has linked so far, and what they mean; in the glossary's order."""
        return [(word, meaning) for word, meaning in GLOSSARY.items() if word in self._used]


def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates of some folders and of this one; every text of a job is escaped, nothing is loaded from elsewhere."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "counted": words.counted,
        "percent": words.percent,
        "size": words.size,
        "duration": duration,
        "law": words.law_in_words,
        "method": words.method_in_words,
        "acceptance_of": words.acceptance_of,
        "commands": _commands,
    }
    environment.globals["ticks"] = ticks
    return environment


def _commands(text: str) -> Markup:
    """A sentence whose `commands` stand between backticks."""
    parts = text.split("`")
    shown = [Markup("<code>{}</code>").format(part) if place % 2 else escape(part) for place, part in enumerate(parts)]
    return Markup("").join(shown)


def ticks(low: float, high: float) -> list[float]:
    """Round values between the edges, two to six of them."""
    least = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * share for share in (1, 2, 2.5, 5, 10) if power * share >= least)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
