"""Figures, laws and methods in a person's words."""
