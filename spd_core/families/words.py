"""Pieces of a law in a person's words that families share."""

from __future__ import annotations

from spd_core.law import SamplerLaw


def guidance_in_words(law: SamplerLaw) -> str:
    """Weight and schedule of guidance."""
    return "no guidance" if law.cfg == 1 else f"guidance {law.cfg:g} ({law.cfg_schedule})"


def path_in_words(law: SamplerLaw) -> str:
    """The diffusion path of a token."""
    return f"{law.steps_in_words} from level {law.start_level}"
