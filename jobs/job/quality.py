"""The ``quality:`` block of a spec: by which network, and against what, the images are measured beside the dataset."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field, ValidationError

from jobs.job.urls import UrlError, check_url
from jobs.job.yaml_text import parse_assignment
from jobs.words.errors import SpecError
from spd_core.complaints import one_line
from spd_core.law import Settings
from spd_core.quality.names import ExtractorName

#: Fields that name a file.
_FILES = ("weights", "reference", "classifier")


class Quality(Settings):
    """Figures by a network and a reference of the user's; none of this changes a byte of the dataset."""

    extractor: ExtractorName = Field(
        "efficientnet",
        description="network of the features: efficientnet is in the package, inception is that of the published FID",
    )
    weights: str = Field("", description="of inception: path or fsspec URL of pt_inception-2015-12-05-6726825d.pth")
    reference: str = Field(
        "",
        description="path or fsspec URL of statistics of real images (VIRTUAL_imagenet256_labeled.npz, or of `spd "
        "reference`), or a bundled name; empty: what needs none",
    )

    classifier: str = Field(
        "",
        description="path or fsspec URL of a classifier of the dataset's classes, for label agreement: .pt2 of "
        "torch.export, or a ResNet's weights; empty: none",
    )

    @property
    def asked(self) -> bool:
        """Whether anything is measured beside what a job measures anyway."""
        return self.compares or bool(self.classifier)

    @property
    def compares(self) -> bool:
        """Whether features are extracted."""
        return self.extractor != "efficientnet" or bool(self.reference)


class _Block(Settings):
    quality: Quality


def check_quality(quality: Quality) -> None:
    """Refuses fields that do not go together.

    Raises:
        SpecError: names the field.
    """
    if quality.extractor == "inception" and not quality.weights:
        raise SpecError("quality.weights: got nothing, allowed: a file of the weights (pt_inception-2015-12-05-...pth)")
    if quality.extractor == "efficientnet" and quality.weights:
        raise SpecError(
            f"quality.weights: got {quality.weights!r}, allowed: only with quality.extractor inception; efficientnet "
            "brings its own"
        )
    for name in _FILES:
        try:
            check_url(f"quality.{name}", getattr(quality, name))
        except UrlError as error:
            raise SpecError(str(error)) from error


def parse_quality(settings: Sequence[str]) -> Quality:
    """The block from ``field=value`` texts, values read as YAML.

    Raises:
        SpecError: a text of another form, or a wrong value.
    """
    raw = {}
    form = f"FIELD=VALUE ({', '.join(Quality.model_fields)})"
    for setting in settings:
        name, value = parse_assignment(setting, "--quality", form, "quality.")
        if name in raw:
            raise SpecError(f"quality.{name}: given twice on the command line, allowed: once")
        raw[name] = value
    try:
        found = _Block.model_validate({"quality": raw}).quality
    except ValidationError as error:
        raise SpecError(one_line(error, _Block)) from error
    check_quality(found)
    if not found.asked:
        raise SpecError("quality.extractor: got efficientnet alone, allowed: inception, a reference or a classifier")
    return found
