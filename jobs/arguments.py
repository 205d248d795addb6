"""The arguments of every command. Nothing heavy is imported here, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse

from jobs.export.formats import FORMATS

#: What ``spd train`` trains: the bundled pairs and the quality data.
TRAINED = ("fashion-ar", "fashion-mar", "fashion-sphere", "fashion-vq", "label-classifier", "reference")
PARTS = (
    "tokenizer", "target", "draft", "distil", "eagle", "target-variance", "draft-variance",
    "acceptance", "bundle", "add", "windows", "figures",
)  # fmt: skip


def _add_set(parser: argparse.ArgumentParser, metavar: str, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=text)


def _spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="spec file; without one, the defaults")
    _add_set(parser, "FIELD=VALUE", "one field, e.g. requests.count=1000")
    parser.add_argument("--pair", metavar="NAME", help="short for --set pair=NAME")
    parser.add_argument("--count", type=int, metavar="N", help="short for --set requests.count=N")
    parser.add_argument("--output", metavar="URL", help="short for --set output=URL")
    parser.add_argument("--workers", type=int, metavar="N", help="short for --set workers.count=N")


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", metavar="OUTPUT", help="URL or folder of a dataset")
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE", help="of the output's file system"
    )


def _report(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    parser.add_argument(
        "--quality",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="measure the images first: extractor, weights and reference of the spec's quality block, docs/quality.md",
    )


def _reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images",
        metavar="IMAGES",
        help="folder of images, Parquet file or folder, .npz with arr_0, or URL or folder of a dataset of spd",
    )
    parser.add_argument("--out", required=True, metavar="FILE.npz", help="the statistics")
    parser.add_argument("--extractor", choices=("efficientnet", "inception"), default="efficientnet")
    parser.add_argument("--weights", metavar="FILE", help="path or URL of the weights of inception")
    parser.add_argument(
        "--features",
        type=int,
        default=0,
        metavar="N",
        help="keep the features of N images too, for precision, recall and KID; published ones use 10,000",
    )
    parser.add_argument("--column", default="image", help="of the encoded images in Parquet; default: image")
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE", help="of the file system of IMAGES"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.5 <= seconds <= 3600:  # which no other text is, and neither is nan
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed: 0.5 to 3600 seconds, after OUTPUT")
    return seconds


def _status(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    parser.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=5.0,
        metavar="SECONDS",
        help="look again every so often, default 5, until the job is finished",
    )


def _validate(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    parser.add_argument(
        "--redecode",
        type=int,
        default=0,
        metavar="N",
        help="then decode N of its images again, at another batch size and in this process; the report tells how many "
        "have the same bytes",
    )
    parser.add_argument(
        "--redecode-batch",
        type=int,
        default=0,
        metavar="B",
        help="that batch size; default 1, or 8 where the job's is 1",
    )


def _export(parser: argparse.ArgumentParser) -> None:
    _output(parser)
    parser.add_argument("destination", metavar="DEST", help="URL or folder to export to: empty, or an export begun")
    parser.add_argument("--to", required=True, choices=tuple(FORMATS), help="form of the export")
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="only this class, number or name; may be repeated"
    )
    parser.add_argument("--size", type=int, metavar="PIXELS", help="resize images to this side")
    parser.add_argument(
        "--image", choices=("png", "webp", "jpeg"), help="encode images anew; default: the stored bytes"
    )
    parser.add_argument("--quality", type=int, metavar="Q", help="of jpeg; default: the dataset's, or 95")
    parser.add_argument("--seed", type=int, default=0, help="npz: of the order of the images")
    parser.add_argument("--partial", action="store_true", help="export what there is of a dataset that is not whole")
    parser.add_argument(
        "--file-mb", type=int, default=128, metavar="MB", help="size of a file, about; memory follows it"
    )
    parser.add_argument(
        "--scratch", metavar="DIR", help="npz to a URL: folder of the array while it is made; default: temporary files'"
    )
    parser.add_argument(
        "--to-storage-option", action="append", default=[], metavar="KEY=VALUE", help="of the file system of DEST"
    )


def _judged(parser: argparse.ArgumentParser, where: str) -> None:
    parser.add_argument(
        "--requirements", metavar="SPEC.yaml", help="a spec whose `requirements:` are asked of the figures"
    )
    parser.add_argument(
        "--storage-option", action="append", default=[], metavar="KEY=VALUE", help=f"of the file system of {where}"
    )


def _nightly(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("history", metavar="HISTORY", help="URL or folder of the nights' records and pages")
    parser.add_argument("--run", dest="job", metavar="SPEC.yaml", help="make tonight's dataset in OUTPUT/YYYY-MM-DD")
    parser.add_argument("--of", metavar="OUTPUT", help="record a dataset that is there; there is no control then")
    _add_set(parser, "FIELD=VALUE", "with --run: one field of the spec")
    parser.add_argument("--night", metavar="YYYY-MM-DD", help="which night; default: today, UTC")
    parser.add_argument("--turns", type=int, metavar="N", help="turns of the method and of plain decoding; default 4")
    _judged(parser, "the history")


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="URL or folder of a dataset")
    parser.add_argument("b", metavar="B", help="and of the one that is judged")
    parser.add_argument("--out", metavar="DIR", help="folder or URL for compare.html, compare.md, compare.json")
    parser.add_argument("--html", metavar="FILE", help="file for the page alone")
    _judged(parser, "both and of DIR")


def _sample(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", help="bundled pair or a folder that holds one; default: the spec's")
    parser.add_argument("--n", type=int, default=16, help="images")
    parser.add_argument("--label", help="label of every image, as number or name; default: all classes in turn")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--method", help="plain, cspd or speculative; default: the spec's")
    _add_set(parser, "FIELD=VALUE", "one field of the spec")
    parser.add_argument("--out", required=True, metavar="FILE", help="image grid as .png, or arrays as .npz")


def _bench_methods(parser: argparse.ArgumentParser) -> None:
    """Which methods are compared."""
    parser.add_argument(
        "--gamma", type=int, nargs="+", metavar="G", help="draft lengths; default 4 8, codes 2 4 6, MAR 4 8 16 32"
    )
    parser.add_argument(
        "--head-window",
        type=int,
        nargs="+",
        metavar="L",
        help="windows of head self-speculation, one a slice of the path",
    )
    parser.add_argument(
        "--ablation", action="store_true", default=None, help="MAR: noise alignment and pre-fill of cspd instead"
    )
    parser.add_argument(
        "--num-iter", type=int, nargs="+", metavar="I", help="MAR: plain decoding at these; default law's, /2, /4, /8"
    )
    parser.add_argument(
        "--paper-gamma", type=int, nargs="*", metavar="G", help="MAR: draft lengths of cspd, paper; default 8"
    )
    parser.add_argument(
        "--head-schedule",
        nargs="*",
        metavar="NAME",
        help="plain decoding with head steps that fall along the image too: linear, cosine, two-stage; default MAR "
        "linear, others none",
    )
    parser.add_argument(
        "--head-steps",
        type=int,
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="from and to which number they fall; default a half and a twentieth of the law's",
    )
    parser.add_argument("--stride", type=int, metavar="K", help="causal, SphereAR: steps the draft holds a prediction")


def _bench_acceptance(parser: argparse.ArgumentParser) -> None:
    """With which acceptance rules, targets and drafts."""
    parser.add_argument(
        "--delta",
        type=float,
        nargs="*",
        metavar="D",
        help="causal, codes, SphereAR: annealed acceptance with these; default causal 2 4 8 16, codes 1.25 1.5 2 3 5, "
        "SphereAR 2 8",
    )
    parser.add_argument(
        "--radius", type=float, nargs="*", metavar="R", help="causal, SphereAR: coupled acceptance with these"
    )
    parser.add_argument(
        "--deepen", type=int, metavar="K", help="causal: a heavier target, K idle blocks after each block; same law"
    )
    parser.add_argument(
        "--tree", nargs="*", metavar="B,B,..", help="codes: draft trees, branches by level; default 2,1,1,1 3,2,1"
    )
    parser.add_argument(
        "--drafter", choices=("draft", "eagle"), help="codes: the draft of most entries; default the pair's first"
    )
    parser.add_argument(
        "--nu", type=float, nargs="*", metavar="NU", help="codes: of the annealed rule, 0 is uniform; default 0.7 0"
    )
    parser.add_argument(
        "--lam", type=float, nargs="*", metavar="L", help="codes: of the lantern++ rule; default 1.25 1.5 2 3 5"
    )
    parser.add_argument(
        "--lantern-delta",
        type=float,
        nargs="*",
        metavar="D",
        help="codes: of the lantern rule; default 0.01 0.05 0.1 0.2",
    )


def _bench_measuring(parser: argparse.ArgumentParser) -> None:
    """How speed and quality are measured, and where the figures go."""
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32], metavar="B", help="batch sizes")
    parser.add_argument(
        "--fills",
        type=int,
        metavar="F",
        help="batches in one timed decoding, default 1, codes 4; with more, speculative decoding refills its slots",
    )
    parser.add_argument(
        "--n", type=int, default=1000, help="images per entry for distance and agreement; 0: speed only"
    )
    parser.add_argument(
        "--quality-of",
        nargs="+",
        metavar="TEXT",
        help="measure distance and agreement of these entries only: TEXT is an entry's name in the table, or a part of "
        "several names; default: every entry but the naive loop and, for codes, all lossless entries but the first, "
        "whose images have the law of plain decoding",
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed decodings per entry and batch size")
    parser.add_argument("--processes", type=int, default=1, help="processes that make the quality images")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--seed", type=int, default=0, help="job seed")
    parser.add_argument("--set", action="append", default=[], metavar="law.FIELD=VALUE", help="one field of the law")
    parser.add_argument("--json", metavar="FILE", help="write the rows as JSON")
    parser.add_argument("--markdown", metavar="FILE", help="write the table as markdown")
    parser.add_argument(
        "--plot", metavar="FILE", help="codes: draw speed against certificate and distance; .svg or .png"
    )
    parser.add_argument("--rows", metavar="FILE", help="measure nothing: table and picture of what --json wrote")


def _bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pair", default="fashion-mar", help="bundled pair or a folder that holds one")
    _bench_methods(parser)
    _bench_acceptance(parser)
    _bench_measuring(parser)


def _calibrate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", nargs="?", metavar="SPEC.yaml", help="spec file with method auto")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="one field of the spec")
    parser.add_argument(
        "--check",
        type=int,
        default=0,
        metavar="LAPS",
        help="then decode whole shards with every choice in turn, so often; exit code 1 if the chosen one has less "
        "than 0.95 of the speed of the best",
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def _overhead(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=1_000_000, help="requests of the job without a model")
    parser.add_argument("--shard-size", type=int, default=1000, help="images per shard of that job")
    parser.add_argument("--workers", type=int, help="workers of that job; default: usable cores")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="one field of the spec of the real jobs"
    )
    parser.add_argument("--shards", type=int, default=4, help="shards of a real job, per worker; 0: none")
    parser.add_argument("--laps", type=int, default=3, help="rounds of loop, one worker and two workers")
    parser.add_argument(
        "--waiting", type=int, default=4000, help="images of the job whose decoder waits; 0: no such job"
    )
    parser.add_argument("--wait-rate", type=float, default=200.0, help="images/s of that decoder")
    parser.add_argument("--folder", help="where the files lie meanwhile; default: the system's temporary folder")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", help=f"a pair or quality data: {', '.join(TRAINED)}")
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="of a pair: train one, fit the draft to the target, learn how a model's predictions follow the noise, "
        "print what the target accepts, make the folder; or put into the folder a variance, tuned windows of head "
        "self-speculation or measured figures",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of checkpoint, loss curve and weights")
    parser.add_argument(
        "--variance", metavar="DIR", help="for add: folder of a run of target-variance or draft-variance"
    )
    parser.add_argument("--bench", metavar="FILE", help="for figures: what `spd bench --json FILE` wrote")
    parser.add_argument(
        "--printed-by", default="spd bench", metavar="COMMAND", help="for figures: the command that printed them"
    )
    parser.add_argument(
        "--target",
        metavar="FILE",
        help="distil, target-variance, acceptance, eagle, draft of codes: its weights; "
        "default: DIR/target/weights.safetensors",
    )
    parser.add_argument(
        "--from",
        dest="initial",
        metavar="FILE",
        help="distil: weights to start from; default: DIR/draft/weights.safetensors; "
        "draft-variance: the draft's weights; default: those in DIR/distil or, without it, DIR/draft",
    )
    parser.add_argument(
        "--stride",
        type=int,
        default=15,
        help="acceptance: steps for which the draft holds each prediction",
    )
    parser.add_argument(
        "--n", type=int, default=200, help="acceptance, variances: test images; windows: training images"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--data", metavar="DIR", help="folder of the Fashion-MNIST idx files")


def _convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--target",
        required=True,
        metavar="FILE",
        help="checkpoint-last.pth of a public MAR model, a c2i checkpoint of LlamaGen, or SphereAR_H.pt and its like",
    )
    parser.add_argument("--draft", metavar="FILE", help="a smaller one of the same family")
    parser.add_argument(
        "--vae",
        metavar="FILE",
        help="MAR: kl16.ckpt; without it no images can be made; SphereAR: vae.pt, default what the target's file holds",
    )
    parser.add_argument("--vq", metavar="FILE", help="LlamaGen: vq_ds16_c2i.pt; without it no images can be made")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="LlamaGen: side of the images, if neither file nor name tells"
    )
    parser.add_argument(
        "--weights", metavar="ENTRY", help="which weights of the files, e.g. model; default: averaged ones if there are"
    )
    parser.add_argument(
        "--heads",
        type=int,
        nargs="+",
        metavar="N",
        help="attention heads of target and draft of other than public widths",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the classes, one a line; default: ImageNet's for 1,000 classes, else their numbers",
    )
    parser.add_argument("--name", required=True, help="name of the pair")
    parser.add_argument("--out", required=True, metavar="DIR", help="the pair folder")


#: By command, in the order of ``spd --help``; ``spec`` has none.
ADD = {
    "generate": _spec, "plan": _spec, "status": _status, "validate": _validate, "report": _report,
    "reference": _reference,
    "nightly": _nightly, "compare": _compare, "export": _export, "sample": _sample,
    "bench": _bench, "calibrate": _calibrate, "overhead": _overhead, "train": _train, "convert": _convert,
}  # fmt: skip
