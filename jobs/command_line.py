"""The command line's parser, whose complaints are one line: argument, value, what is allowed."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from spd_core.alike import did_you_mean

#: argparse's sentences and ours. A group ``name`` is the argument, ``got`` what was given, ``allowed`` the choices.
_SENTENCES = (
    (r"argument (?P<name>.+?): invalid int value: (?P<got>.*)", "{name}: got {got}, allowed: a whole number"),
    (r"argument (?P<name>.+?): invalid float value: (?P<got>.*)", "{name}: got {got}, allowed: a number"),
    (
        r"argument (?P<name>.+?): invalid choice: (?P<got>.*) \(choose from (?P<allowed>.*)\)",
        "{name}: got {got}, allowed: {allowed}",
    ),
    (r"argument (?P<name>.+?): expected one argument", "{name}: got nothing, allowed: a value"),
    (r"argument (?P<name>.+?): expected at least one argument", "{name}: got nothing, allowed: one value or more"),
    (r"argument (?P<name>.+?): ignored explicit argument (?P<got>.*)", "{name}: got {got}, allowed: no value"),
    (r"argument (?P<name>.+?): given twice, allowed: once", "{name}: given twice, allowed: once"),
    (r"the following arguments are required: (?P<name>.*)", "{name}: got nothing, allowed: a value"),
)


def _in_our_words(message: str) -> str:
    for pattern, sentence in _SENTENCES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            parts = found.groupdict()
            near = ""
            if "allowed" in parts:
                known = re.findall(r"[^\s,']+", parts["allowed"])
                parts["allowed"] = ", ".join(known)
                near = did_you_mean(parts["got"].strip("'"), known)
            return sentence.format(**parts) + near
    return message


class _Once(argparse.Action):
    """Keeps an option's value; a second one would have to win silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        given: set[str] = vars(namespace).setdefault("given_options", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "given twice, allowed: once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and complains in one line, exit code 2.

    An option that is given twice is refused, unless it says ``append``.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]
        for name in (None, "store"):
            self.register("action", name, _Once)

    def error(self, message: str) -> NoReturn:
        """Ends the program with one line on standard error."""
        line = " ".join(_in_our_words(message).split())
        sys.stderr.write(f"spd: {line} (see {self.prog} --help)\n")
        sys.exit(2)


def unknown_arguments(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """What to say of arguments that a command does not have.

    Args:
        unknown: as given.
        parser: of the command.
    """
    name = next((text for text in unknown if text.startswith("-")), unknown[0]).partition("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    return f"{name}: unknown argument{did_you_mean(name, known) if name.startswith('-') else ''}"
