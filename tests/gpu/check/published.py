"""Published figures that ours stand beside; of other machines and other code, so never a baseline for ours."""

from __future__ import annotations

#: CSpD's speed over plain decoding of 256 iterations on one A100 (arXiv:2411.11925, Table 1), by target, draft and
#: gamma, then by batch.
CSPD_SPEEDUP: dict[tuple[str, str, int], dict[int, float]] = {
    ("huge", "base", 4): {1: 1.11, 8: 1.20, 128: 1.56, 256: 1.62},
    ("huge", "base", 8): {1: 1.26, 8: 1.44, 128: 1.88, 256: 1.96},
    ("huge", "base", 16): {1: 1.37, 8: 1.51, 128: 2.07, 256: 2.20},
    ("huge", "base", 32): {1: 1.44, 8: 1.61, 128: 2.17, 256: 2.33},
    ("huge", "large", 32): {1: 1.26, 8: 1.34, 128: 1.47, 256: 1.53},
    ("large", "base", 32): {1: 1.18, 8: 1.21, 128: 1.44, 256: 1.49},
}
