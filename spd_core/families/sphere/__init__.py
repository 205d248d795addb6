"""SphereAR (arXiv:2509.24335): causal, raster order, continuous tokens on a sphere, a flow head with fixed stds."""
