"""Models, laws, decoders and metrics: pure torch, no Ray, no network."""
