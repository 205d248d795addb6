"""MAR (arXiv:2406.11838): masked autoregression over continuous tokens, with a diffusion head."""
