"""``spd bench`` and ``spd overhead``: what is compared, how it is measured, and the tables."""
