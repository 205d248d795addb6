"""Decoders with one thing wrong each, and the checks that must notice; `python -m tests.spd_core.mutants`: the table.

A mutant replaces a function, a method or a constant of the product while a check runs. The checks are of laws: against
an independent sampler, an enumeration, a prediction by importance weighting, or the public code's numbers.
"""
