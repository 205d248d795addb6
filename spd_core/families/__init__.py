"""One folder a model family: everything that only this family knows."""
