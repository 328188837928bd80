"""Training: one engine for every phase, checkpoints that say what made them, resume after a kill."""
