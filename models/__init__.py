"""Layers, networks, weights files, and the detector that runs them."""
