"""Networks, one per file, and the table of their names. Training them is in toolkit/training."""
