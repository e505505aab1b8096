"""The model, by the names of its description: tokenizer, encoder, predictor, flow-matching policy."""
