"""LlamaGen (arXiv:2406.06525): causal models over discrete codes."""
