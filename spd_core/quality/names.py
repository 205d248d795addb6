"""Names of the extractors, which a spec needs without loading one."""

from __future__ import annotations

from typing import Literal

ExtractorName = Literal["efficientnet", "inception"]
