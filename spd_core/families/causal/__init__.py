"""Causal models over continuous tokens with a diffusion head, made here."""
