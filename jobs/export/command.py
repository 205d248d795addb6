"""``spd export``: a dataset in a form that other programs read."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jobs.export import layout
from jobs.export.run import Wishes, export
from jobs.job.urls import UrlError, check_url
from jobs.words.console import say
from jobs.words.errors import SpecError
from jobs.words.phrases import counted
from workers.redact import public_url
from workers.store import Store


def run(args: argparse.Namespace, output: str, options: dict[str, Any], destination_options: dict[str, Any]) -> int:
    """Exports and says what came of it; returns the exit code.

    Args:
        args: of the command line.
        output: URL of the dataset.
        options: of its file system.
        destination_options: of the destination's.
    """
    try:
        check_url("DEST", args.destination)
    except UrlError as error:
        raise SpecError(str(error)) from error
    if not args.destination:
        raise SpecError("DEST: got nothing, allowed: URL or folder to export to")
    for flag, value, most in (
        ("--size", args.size, 65_535),
        ("--quality", args.quality, 100),
        ("--file-mb", args.file_mb, 100_000),
    ):
        if value is not None and not 1 <= value <= most:
            raise SpecError(f"{flag}: got {value}, allowed: 1 to {most:,}")
    if not 0 <= args.seed < 2**32:
        raise SpecError(f"--seed: got {args.seed}, allowed: 0 to {2**32 - 1:,}")
    scratch = None if args.scratch is None else Path(args.scratch)
    if scratch is not None and not scratch.is_dir():
        raise SpecError(f"--scratch: got {args.scratch!r}, allowed: a folder that exists")
    wishes = Wishes(
        format=args.to,
        labels=tuple(args.label),
        size=args.size,
        encoding=args.image,
        quality=args.quality,
        seed=args.seed,
        partial=args.partial,
        file_mb=args.file_mb,
    )
    destination = Store(args.destination, destination_options)
    done = export(Store(output, options), destination, wishes, scratch)
    before = f", {done.rows - done.made} of them by an earlier run" if done.made < done.rows else ""
    shown = public_url(destination.url)
    say(f"{shown}: {counted(done.rows, 'image', 'images')} as {args.to}{before}; images: {done.images_in_words}")
    say(f"manifest: {shown}/{layout.MANIFEST}")
    return 0
