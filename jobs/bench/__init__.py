"""``spd bench`` and ``spd road``: what is compared, how it is measured, and the tables."""
