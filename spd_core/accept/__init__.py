"""Acceptance rules and residuals as pure functions of densities."""
