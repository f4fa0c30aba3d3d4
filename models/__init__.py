"""Networks, one family per file, and the registry of their names. Training is in toolkit/training."""
