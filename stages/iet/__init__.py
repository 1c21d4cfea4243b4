"""IET of the paper: shards, averaging of their models (Eq. 9), images that move between them (Eq. 10 and 11)."""
