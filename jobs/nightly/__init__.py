"""Nights: what a dataset made every night has cost and been worth, and whether that has become worse."""
