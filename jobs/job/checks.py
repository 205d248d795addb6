"""The ``checks:`` of a spec: what a job is asked to try on its own images once they are there."""

from __future__ import annotations

from pydantic import Field

from spd_core.law import Settings


class Checks(Settings):
    """None of this changes a byte of the images."""

    batch_invariance: int = Field(
        0,
        ge=0,
        le=10_000,
        description="images that are decoded again at another batch size and, where there is one, on another machine; "
        "report and card say how many bytes agree; 0: none",
    )
    batch: int = Field(
        0, ge=0, le=65536, description="of that batch_invariance; 0: 1, each image alone, or 8 where the job's is 1"
    )

    def other_batch(self, batch: int) -> int:
        """The batch size to decode at again, of a job with a batch size."""
        return self.batch or (1 if batch > 1 else 8)
