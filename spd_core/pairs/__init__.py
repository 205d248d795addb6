"""Bundled pairs, loading any pair folder, converting official checkpoints into one."""
