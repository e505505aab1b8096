"""Checkpoints: the folder and its files, the hub, sharing, model cards."""
