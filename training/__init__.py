"""Training a network: what train.py and start.py call."""
