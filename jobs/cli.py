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

import yaml

_OK, _FAILED, _WRONG_INPUT, _INTERRUPTED = 0, 1, 2, 130
#: Subcommands whose module defines its own arguments and run(args) -> exit code.
_MODULES = {
    "bench": "speed, acceptance and distance of decoding, without Ray",
    "calibrate": "what method auto would choose here, without Ray; writes no dataset",
    "road": "speed and memory of everything around the decoder: planning, a job without a model, resuming, overhead",
    "train": "train the models of a pair",
    "convert": "turn public MAR and LlamaGen checkpoints into a pair folder",
}
_QUIET = ("ray", "botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "PIL", "filelock")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _storage_options(pairs: Sequence[str]) -> dict[str, Any]:
    from jobs.spec import SpecError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SpecError(f"--storage-option: got {key!r}, allowed: KEY=VALUE")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(f"--storage-option: the value of {key!r} is not YAML") from error
    return options


def _overrides(args: argparse.Namespace) -> list[str]:
    short = {"output": args.output, "workers.count": args.workers}
    return [*args.set, *(f"{field}={json.dumps(value)}" for field, value in short.items() if value is not None)]


def _generate(args: argparse.Namespace) -> int:
    from jobs.driver import generate
    from jobs.progress import duration
    from jobs.spec import load_spec
    from workers import layout

    done = generate(load_spec(args.spec, _overrides(args)))
    _say(
        f"{done['output']}: {done['images']} images in {done['shards']} shards, "
        f"{done['made']} of them made in this run of {duration(done['seconds'])}"
    )
    _say(f"report: {done['output']}/{layout.REPORT_HTML}")
    return _OK


def _plan(args: argparse.Namespace) -> int:
    from jobs.estimate import estimate, estimate_lines
    from jobs.spec import load_spec
    from spd_core.pairs.pair import load_card

    spec = load_spec(args.spec, _overrides(args))
    card = load_card(spec.pair)
    _say("\n".join(estimate_lines(card, spec, estimate(card, spec))))
    return _OK


def _status(args: argparse.Namespace) -> int:
    from jobs.status import status

    _say("\n".join(status(args.output, _storage_options(args.storage_option)).lines()))
    return _OK


def _validate(args: argparse.Namespace) -> int:
    from jobs.validate import validate

    found = validate(args.output, _storage_options(args.storage_option))
    for problem in found.problems:
        _say(problem)
    verdict = "ok" if found.ok else f"{len(found.problems)} problems"
    _say(f"{verdict}: {found.rows} images, {found.shards} shards, {found.files} files, {found.bytes} bytes")
    return _OK if found.ok else _FAILED


def _report(args: argparse.Namespace) -> int:
    from jobs.finish import rewrite_report
    from workers import layout

    report = rewrite_report(args.output, _storage_options(args.storage_option))
    state = "partial, " if report["partial"] else ""
    _say(f"{state}{report['images']['committed']} images: {args.output.rstrip('/')}/{layout.REPORT_HTML}")
    return _OK


def _sample(args: argparse.Namespace) -> int:
    from jobs.sample import run

    run(args.pair, args.n, args.label, args.seed, args.method, args.set, args.out)
    return _OK


def _spec(_args: argparse.Namespace) -> int:
    from jobs.spec_text import spec_as_yaml

    _say(spec_as_yaml().rstrip("\n"))
    return _OK


def _add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="spec file; without one, the defaults")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="one field, e.g. requests.count=1000",
    )
    parser.add_argument("--output", metavar="URL", help="short for --set output=URL")
    parser.add_argument("--workers", type=int, metavar="N", help="short for --set workers.count=N")


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="URL or folder of a dataset")
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE", help="of the output's file system"
    )


def _add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", help="bundled pair or a folder that holds one; default: the spec's")
    parser.add_argument("--n", type=int, default=16, help="images")
    parser.add_argument("--label", type=int, help="label of every image; default: all classes in turn")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--method", help="plain, cspd or speculative; default: the spec's")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="one field of the spec")
    parser.add_argument("--out", required=True, metavar="FILE", help="image grid as .png, or arrays as .npz")


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spd", description="Generate image datasets with continuous speculative decoding, and prove what was made."
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    _add_spec_arguments(add("generate", "make a dataset, or finish one that was begun", _generate))
    _add_spec_arguments(add("plan", "shards, bytes, time and cost of a spec; writes nothing", _plan))
    _add_output_arguments(add("status", "how far a job is, from the store alone", _status))
    _add_output_arguments(add("validate", "re-read a dataset and name every damaged file", _validate))
    _add_output_arguments(add("report", "write report.html and report.json from what is committed", _report))
    _add_sample_arguments(add("sample", "a few images without Ray", _sample))
    for name, text in _MODULES.items():
        command = commands.add_parser(name, help=text, description=text)
        if name in argv:
            module = importlib.import_module(f"jobs.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    add("spec", "print every field of the spec with its default, as YAML", _spec)
    return parser


def _complain(text: object) -> None:
    # One line whatever the error holds, so that a script can read it.
    from workers.redact import redact

    sys.stderr.write(f"spd: {redact(' '.join(str(text).split()))}\n")


def _run(args: argparse.Namespace) -> int:
    """Runs a subcommand and turns what a user can do something about into one line and an exit code."""
    from jobs.driver import Stopped
    from jobs.fleet import JobError
    from jobs.spec import SpecError
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
        _complain(f"stopped by {stop}; what is committed stays, the same command resumes")
        return stop.exit_code
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED


def _set_up_logging() -> None:
    from workers.redact import RedactingFormatter, redact

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # What nobody has foreseen ends in a traceback, whose texts may hold anything.
    sys.excepthook = lambda *error: sys.stderr.write(redact("".join(traceback.format_exception(*error)))) and None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 problems or a failed job, 2 wrong input, 128 + n by signal n."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(given)
    args = parser.parse_args(given)
    if args.version:
        from jobs.plan import package_version

        _say(f"spd {package_version('spd')}")
        return _OK
    if args.command is None:
        parser.print_usage(sys.stderr)
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
