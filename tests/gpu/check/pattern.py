"""``python -m tests.gpu.check.pattern``: records where fashion-mar's head self-speculation rejects its own steps.

Decodes some images on the CPU with each of the pair's window schedules, one token at a time, and writes the rejected
steps of every token's path to the file that `tests.gpu.check.imposed` reads.
"""

from __future__ import annotations

import json
from unittest.mock import patch

import torch
from torch import Tensor

from spd_core.decode import decode, head_speculation
from spd_core.decode.head_speculation import windows_by_step
from spd_core.draws import Draws
from spd_core.law import Plain
from spd_core.pairs.pair import Pair, load_pair
from tests.gpu.check.imposed import PATTERN

IMAGES = 6
SEED = 11


def rejections(pair: Pair, windows: tuple[int, ...], images: int) -> list[list[int]]:
    """Refused steps of every path, the first made first; step 0, which has no test, is never among them."""
    steps = pair.card.law.head_steps
    length_S = windows_by_step(windows, steps, pair.device)
    paths: list[list[int]] = []
    step = steps - 1
    original = head_speculation.num_accepted

    def listening(accepted_AL: Tensor) -> Tensor:
        nonlocal step
        at = original(accepted_AL)
        if step == steps - 1:
            paths.append([])
        window = min(int(length_S[step]), step + 1)
        accepted = min(int(at[0]), window - 1)
        if int(at[0]) < window and step - accepted > 0:
            paths[-1].append(step - accepted)
        step = step - accepted - 1 if step - accepted > 0 else steps - 1
        return at

    with patch.object(head_speculation, "num_accepted", listening):
        for image in range(images):
            labels, seeds = torch.tensor([image % 10]), torch.tensor([SEED + image])
            decode(pair, pair.card.law, Plain(head_window=windows), labels, Draws(seeds))
    return paths


def main() -> None:
    pair = load_pair("fashion-mar", "cpu", draft=False)
    schedules = [
        {"windows": windows, "steps": pair.card.law.head_steps, "rejected": rejections(pair, windows, IMAGES)}
        for windows in pair.card.head_windows
    ]
    weights = pair.card.sha256["target"][:12]
    text = json.dumps({"pair": "fashion-mar", "target": weights, "images": IMAGES, "schedules": schedules})
    PATTERN.parent.mkdir(exist_ok=True)
    PATTERN.write_text(text.replace('{"windows"', '\n{"windows"') + "\n")


if __name__ == "__main__":
    main()
