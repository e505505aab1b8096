"""Training: one loop for all phases, checkpoints without pickle, several processes."""
