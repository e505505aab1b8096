"""Temporal JEPA: tokenizer, encoder and its EMA target, temporal predictor, losses."""
