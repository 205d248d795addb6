"""README.md of a dataset: the data card, with the front matter that the Hugging Face hub and ``datasets`` read."""

from __future__ import annotations

import re
from typing import Any

import yaml

from jobs.dataset.aggregate import Json
from jobs.job.plan import Plan
from jobs.words import phrases as words
from jobs.words.gained import speed_in_words
from jobs.words.glossary import GLOSSARY
from spd_core.law import Guarantee
from workers import layout

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_SIZE_NAMES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1B")
#: Licence names the hub knows, by our spelling in lower case; any other is "other" with its name beside it.
_HUB_LICENCES = frozenset({"mit", "apache-2.0", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "openrail"})


def front_matter(plan: Plan, licence: str) -> dict[str, Any]:
    """The card's metadata in the hub's form."""
    known = licence.lower()
    licensed = {"license": known} if known in _HUB_LICENCES else {"license": "other"}
    if known not in _HUB_LICENCES:
        licensed["license_name"] = licence
    return {
        "pretty_name": plan.spec.name,
        **licensed,
        "task_categories": ["unconditional-image-generation", "image-classification"],
        "tags": ["synthetic", "image-generation"],
        "size_categories": [_SIZE_NAMES[sum(plan.rows >= bound for bound in _SIZES)]],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }


def _line(text: object) -> str:
    """Text from outside on one line, with what Markdown or HTML would act on made plain."""
    flat = " ".join(str(text).split())
    return "".join(f"\\{char}" if char in "\\`*[]<>|#" else char for char in flat)


def _figures(report: Json) -> list[str]:
    speed = report["throughput"]
    rows = [
        ("images", f"{report['images']['committed']:,}"),
        ("images/s, all workers", words.number(speed["images_per_s"])),
        ("images/s per worker", words.number(speed["images_per_s_per_worker"])),
    ]
    if paid := report["cost"]:
        unit = f"at {words.number(paid['price_per_hour'])} an hour of a worker, in the currency of that price"
        rows.append(("cost of 1,000 images", f"{words.number(paid['per_1000_images'])}, {unit}"))
    if report["acceptance"]:
        name = f"drafts accepted, {words.acceptance_of(report['method'])}"
        rows.append((name, words.percent(report["acceptance"]["rate"])))
    if report["certificate"]:
        rows += words.certificate_in_words(report["certificate"])
    rows += words.quality_in_words(report["quality"])
    rows += words.comparison_in_words(report.get("comparison"))
    rows += words.redecoded_in_words(report.get("batch_invariance"))
    return ["| figure | value |", "|---|---|", *(f"| {_line(name)} | {_line(value)} |" for name, value in rows)]


def _gained(report: Json) -> list[str]:
    """What the way of decoding has gained, as a paragraph."""
    text = speed_in_words(report)
    return ["", f"{text[0].upper()}{text[1:]}."] if text else []


def _choice(plan: Plan) -> list[str]:
    if plan.calibration is None:
        return []
    chosen, measured = plan.calibration.chosen, len(plan.calibration.rows)
    if plan.calibration.unmeasured:
        return [f"- Nothing was measured, {plan.calibration.unmeasured}: the method is the pair's own"]
    if chosen is None:
        return ["- Chosen by `method: auto`: the measurements were lost with a damaged plan"]
    return [
        f"- Chosen by `method: auto`: the fastest of {measured} that one worker measured, "
        f"{words.number(chosen.images_per_s)} images/s at batch {chosen.batch}; guarantee at least "
        f"`{plan.calibration.method.guarantee}` was asked for"
    ]


def _platforms(report: Json) -> list[str]:
    found = [f"{_line(name)} ({images:,} images)" for name, images in report["platforms"].items()]
    mixed = "; equal bytes hold for each of them alone" if len(found) > 1 else ""
    return [f"- Made on: {', '.join(found)}{mixed}"] if found else []


#: What the column `certificate` holds, by guarantee.
_CERTIFICATES = {"exact": "0: the method is exact", "tv": "only its mean over images bounds anything"}
#: Words that the card explains, in the order in which it uses them.
_WORDS = ("law", "guarantee", "pair", "draft", "round", "gap", "floor", "Frechet distance", "label agreement")


def _load(guarantee: str) -> list[str]:
    """How a reader loads the data, and what is in it."""
    certificate = _CERTIFICATES.get(guarantee, "null: no bound exists")
    return [
        "```python",
        "from datasets import load_dataset",
        "",
        'dataset = load_dataset("parquet", data_files="data/*.parquet", split="train")  # in this folder',
        'print(dataset[0]["image"], dataset.features["label"].int2str(dataset[0]["label"]))',
        "```",
        "",
        "One row per image: `image`, `label`, `request_id`, `seed`, `accepted` and `drafted` (draft tokens), "
        f"`rounds`, `certificate` ({certificate}), `guarantee`, `label_agrees` (a classifier of real images sees the "
        "label). `acceptance/` has one row per verified draft, `_features/` one feature vector per image.",
    ]


def _words(guarantee: str) -> list[str]:
    """What the card's words mean."""
    used = (*_WORDS, "certificate", "total variation") if guarantee == Guarantee.TV else _WORDS
    return [f"- {word}: {_line(GLOSSARY[word])}" for word in used]


def _made(plan: Plan, report: Json) -> list[str]:
    """How the images were made."""
    pair = report["pair"]
    promise = words.guarantee_in_words(plan.guarantee, plan.spec.law.dtype, plan.pair_sha256.get("target", ""))
    return [
        f"- Law: {_line(words.law_in_words(report['law'], plan.family))}",
        f"- Method: {_line(words.method_in_words(report['method'], plan.family))}",
        *_choice(plan),
        f"- Guarantee `{plan.guarantee}`: {_line(promise)}",
        f"- Pair: {_line(pair['name'])}",
        *(f"- {_line(part)}: sha256 {_line(digest)}" for part, digest in sorted(pair["sha256"].items())),
        *_platforms(report),
        f"- Licence of the weights: {_line(pair['licence'])}",
        f"- Trained on: {_line(pair['data'])}",
        f"- Job seed {plan.spec.seed}; fingerprint {_line(plan.fingerprint)}",
    ]


def _reproduce(plan: Plan) -> list[str]:
    """The spec that makes the same images."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(plan.versions.items()))
    spec = yaml.safe_dump({key: value for key, value in plan.stored_spec.items() if key not in ("workers", "output")})
    fence = max(["```", *(f"{run}`" for run in re.findall("`{3,}", spec))], key=len)
    return [
        "With the pair above, `spd generate spec.yaml` on the same platform (kind of device, torch, CUDA) and the "
        f"same versions ({_line(versions)}) gives the same image bytes. `spec.yaml`:",
        "",
        f"{fence}yaml",
        f"{spec}{fence}",
    ]


def render_card(plan: Plan, report: Json) -> str:
    """The card as Markdown."""
    front = yaml.safe_dump(front_matter(plan, report["pair"]["licence"]), sort_keys=False, allow_unicode=True)
    classes = words.counted(sum(row["images"] > 0 for row in report["classes"]), "class", "classes")
    return "\n".join(
        [
            "---",
            f"{front}---",
            "",
            f"# {_line(plan.spec.name)}",
            "",
            f"{plan.rows:,} images of {classes}, generated by the models named below and stored with the evidence of "
            "how they were made.",
            *_gained(report),
            "",
            "## How the images were made",
            "",
            *_made(plan, report),
            "",
            "## Figures",
            "",
            *_figures(report),
            "",
            f"All of them, and how they were measured, are in `{layout.REPORT_HTML}` and `{layout.REPORT_JSON}`.",
            "",
            "## Load",
            "",
            *_load(plan.guarantee),
            "",
            "## Words",
            "",
            *_words(plan.guarantee),
            "",
            "## Reproduce",
            "",
            *_reproduce(plan),
            "",
        ]
    )
