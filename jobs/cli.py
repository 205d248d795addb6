"""The command ``spd``. Modules are imported by the subcommand that needs them, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from jobs import arguments
from jobs.command_line import Parser, unknown_arguments
from jobs.words.console import LogHandler, say

_OK, _FAILED, _WRONG_INPUT, _INTERRUPTED = 0, 1, 2, 130
_QUIET = ("ray", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "PIL", "filelock")


def _storage_options(pairs: Sequence[str]) -> dict[str, Any]:
    from jobs.job.yaml_text import YamlError, parse_yaml
    from jobs.words.errors import SpecError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SpecError(f"--storage-option: got {key!r}, allowed: KEY=VALUE")
        try:
            options[key] = parse_yaml(value)
        except YamlError as error:
            raise SpecError(f"--storage-option: the value of {key!r} is not YAML") from error
    return options


def _overrides(args: argparse.Namespace) -> list[str]:
    short = {"pair": args.pair, "requests.count": args.count, "output": args.output, "workers.count": args.workers}
    return [*args.set, *(f"{field}={json.dumps(value)}" for field, value in short.items() if value is not None)]


def _generate(args: argparse.Namespace) -> int:
    from jobs.job.spec import load_spec
    from jobs.run.driver import generate
    from jobs.words.gained import gained_lines
    from jobs.words.phrases import counted
    from jobs.words.progress import duration
    from workers import layout
    from workers.store import Store

    spec = load_spec(args.spec, _overrides(args))
    done = generate(spec)
    images, shards = counted(done["images"], "image", "images"), counted(done["shards"], "shard", "shards")
    say(
        f"{done['output']}: {images} in {shards}, "
        f"{done['made']} of them made in this run of {duration(done['seconds'])}"
    )
    report = json.loads(Store(spec.output, spec.storage_options).read(layout.REPORT_JSON))
    for line in gained_lines(report):
        say(line)
    say(f"report: {done['output']}/{layout.REPORT_HTML}")
    return _OK


def _plan(args: argparse.Namespace) -> int:
    from jobs.job.spec import load_spec
    from jobs.run.estimate import estimate, estimate_lines
    from spd_core.pairs.pair import load_card

    spec = load_spec(args.spec, _overrides(args))
    card = load_card(spec.pair)
    say("\n".join(estimate_lines(card, spec, estimate(card, spec))))
    return _OK


def _output(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The output that a command looks at and the options of its file system."""
    from jobs.job.urls import UrlError, check_url
    from jobs.words.errors import SpecError

    try:
        check_url("output", args.output)
    except UrlError as error:
        raise SpecError(str(error)) from error
    if not args.output:
        raise SpecError("output: got nothing, allowed: URL or folder of a dataset")
    return args.output, _storage_options(args.storage_option)


def _status(args: argparse.Namespace) -> int:
    from jobs.dataset.status import Watched

    watched = Watched(*_output(args))
    if args.watch is not None:
        from jobs.commands.watch import watch

        return watch(watched.look, args.watch)
    say("\n".join(watched.look().lines()))
    return _OK


def _validate(args: argparse.Namespace) -> int:
    from jobs.dataset.validate import validate
    from jobs.job.checks import Checks
    from jobs.words.errors import SpecError
    from jobs.words.phrases import counted, redecoded_in_words

    for flag, value, most in (("--redecode", args.redecode, 10_000), ("--redecode-batch", args.redecode_batch, 65_536)):
        if not 0 <= value <= most:
            raise SpecError(f"{flag}: got {value}, allowed: a whole number from 0 to {most:,}")
    checks = Checks(batch_invariance=args.redecode, batch=args.redecode_batch)
    found = validate(*_output(args))
    for problem in found.problems:
        say(problem)
    verdict = "ok" if found.ok else counted(len(found.problems), "problem", "problems")
    images, shards = counted(found.rows, "image", "images"), counted(found.shards, "shard", "shards")
    say(f"{verdict}: {images}, {shards}, {counted(found.files, 'file', 'files')}, {found.bytes} bytes")
    if found.ok and checks.batch_invariance:
        from jobs.run.redecode import redecode_here

        again = redecode_here(*_output(args), checks).model_dump(mode="json")
        say("\n".join(f"{name}: {value}" for name, value in redecoded_in_words(again)))
    return _OK if found.ok else _FAILED


def _report(args: argparse.Namespace) -> int:
    from jobs.dataset.finish import rewrite_report
    from jobs.job.quality import parse_quality
    from jobs.words.phrases import counted
    from workers import layout

    output = _output(args)
    report = rewrite_report(*output, parse_quality(args.quality) if args.quality else None)
    state = "partial, " if report["partial"] else ""
    images = counted(report["images"]["committed"], "image", "images")
    say(f"{state}{images}: {args.output.rstrip('/')}/{layout.REPORT_HTML}")
    return _OK


def _reference(args: argparse.Namespace) -> int:
    from jobs.commands.reference import run

    args.options = _storage_options(args.storage_option)
    return run(args)


def _export(args: argparse.Namespace) -> int:
    from jobs.export.command import run

    return run(args, *_output(args), _storage_options(args.to_storage_option))


def _sample(args: argparse.Namespace) -> int:
    from jobs.commands.sample import run

    run(args.pair, args.n, args.label, args.seed, args.method, args.set, args.out)
    return _OK


def _nightly(args: argparse.Namespace) -> int:
    from jobs.nightly import command

    args.options = _storage_options(args.storage_option)
    return command.run(args) if args.command == "nightly" else command.run_compare(args)


def _spec(_args: argparse.Namespace) -> int:
    from jobs.job.spec_text import spec_as_yaml

    say(spec_as_yaml().rstrip("\n"))
    return _OK


def _module(name: str) -> Callable[[argparse.Namespace], int]:
    """The ``run`` of a command's own module, which is imported when it runs."""
    return lambda args: int(importlib.import_module(f"jobs.{name}").run(args))


#: What each command does and the function that does it.
_COMMANDS: dict[str, tuple[str, Callable[[argparse.Namespace], int]]] = {
    "generate": ("make a dataset, or finish one that was begun", _generate),
    "plan": ("shards, bytes, time and cost of a spec; writes nothing", _plan),
    "status": ("how far a job is, from the store alone", _status),
    "validate": ("re-read a dataset and name every damaged file", _validate),
    "report": ("write report.html and report.json from what is committed", _report),
    "reference": ("statistics of real images, to hold generated ones against", _reference),
    "nightly": (
        "tonight's dataset or one that is there, a record of it, trend pages, and a verdict: 3 if worse",
        _nightly,
    ),
    "compare": ("what became worse from one dataset to another: exit code 3 if a figure did", _nightly),
    "export": ("write a dataset in a form that other programs read, or finish doing so", _export),
    "sample": ("a few images without Ray", _sample),
    "bench": ("speed, acceptance and distance of decoding, without Ray", _module("bench.command")),
    "calibrate": ("what method auto would choose here, without Ray; writes no dataset", _module("commands.calibrate")),
    "overhead": (
        "speed and memory of everything around the decoder: planning, a job without a model, resuming, overhead",
        _module("bench.overhead"),
    ),
    "train": ("train the models of a pair", _module("commands.train")),
    "convert": ("turn public MAR, LlamaGen and SphereAR checkpoints into a pair folder", _module("commands.convert")),
    "spec": ("print every field of the spec with its default, as YAML", _spec),
}


#: Commands by the names that they had.
_FORMER = {"road": "overhead"}


def _renamed(argv: list[str]) -> list[str]:
    """The arguments with the present name of a command in place of a former one, which is said."""
    if argv and argv[0] in _FORMER:
        _complain(f"`spd {argv[0]}` is now `spd {_FORMER[argv[0]]}`; running that")
        return [_FORMER[argv[0]], *argv[1:]]
    return argv


def _parser() -> Parser:
    parser = Parser(
        prog="spd", description="Generate image datasets with continuous speculative decoding, and prove what was made."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (text, run) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, parser=command)
        if name in arguments.ADD:
            arguments.ADD[name](command)
    return parser


def _complain(text: object) -> None:
    # One line whatever the error holds, so that a script can read it.
    from workers.redact import redact

    sys.stderr.write(f"spd: {redact(' '.join(str(text).split()))}\n")


def _run(args: argparse.Namespace) -> int:
    """Runs a subcommand and turns what a user can do something about into one line and an exit code."""
    from pydantic import ValidationError

    from jobs.run.signals import Stopped
    from jobs.words.errors import JobError, SpecError
    from spd_core.pairs.pair import PairError
    from spd_core.quality.files import QualityError
    from workers.store import StoreError

    try:
        return int(args.run(args))
    except (SpecError, PairError, StoreError, QualityError) as error:
        _complain(error)
        return _WRONG_INPUT
    except JobError as error:
        _complain(error)
        return _FAILED
    except Stopped as stop:
        _complain(f"stopped by {stop}; committed shards remain, and the same command resumes")
        return stop.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except ValidationError as error:
        problem = error.errors()[0]
        _complain(f"{'.'.join(map(str, problem['loc'])) or error.title}: {problem['msg']}")
        return _WRONG_INPUT
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full disk, a folder in place of a file: the machine's fault, which a traceback does not explain.
        _complain(f"{error.filename or args.command}: {error.strerror or error}")
        return _FAILED


def _set_up_logging() -> None:
    from jobs.words.progress import draw_bars
    from workers.redact import RedactingFormatter, redact

    draw_bars()
    handler = LogHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What nobody has foreseen ends in a traceback, whose texts may hold anything.
    sys.excepthook = lambda *error: sys.stderr.write(redact("".join(traceback.format_exception(*error)))) and None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed, 2 wrong input, 3 a figure is worse, 128 + n by signal n."""
    parser = _parser()
    args, unknown = parser.parse_known_args(_renamed(list(sys.argv[1:] if argv is None else argv)))
    if unknown:
        used = args.parser if args.command else parser
        used.error(unknown_arguments(unknown, used))
    if args.version:
        from jobs.job.plan import package_version

        say(f"spd {package_version('spd')}")
        return _OK
    if args.command is None:
        parser.print_help(sys.stderr)
        return _WRONG_INPUT
    _set_up_logging()
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        return _run(args)
    except BrokenPipeError:
        # Whoever read our output has seen enough; without this, the interpreter complains while it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _OK


if __name__ == "__main__":
    sys.exit(main())
