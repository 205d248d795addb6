"""A metric that is not of the product: what "Adding a metric" of docs/architecture.md shows, word for word."""

from collections.abc import Mapping
from typing import Any

from spd_core.quality.metrics import Figures, Generated, Metric, Told


class MeanDistance(Metric):
    """Euclidean distance between the mean features of generated and of real images."""

    name = "mean_distance"

    def figures(self, images: Generated) -> Figures:
        apart = images.features.mean(dim=0) - images.reference.features.mean(dim=0)
        return {"mean_distance": float(apart.norm())}

    def told(self, quality: Mapping[str, Any]) -> list[Told]:
        return [Told("distance of the mean features", quality["mean_distance"])]
