"""Temporal JEPA: tokenizer, encoder and its EMA target, temporal predictor, loss."""

from statevla.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.jepa.loss import JepaLosses, temporal_jepa_loss
from statevla.jepa.temporal_predictor import TemporalPredictor
from statevla.jepa.tokenizer import Tokenizer

__all__ = [
    "Encoder",
    "JepaLosses",
    "TemporalPredictor",
    "Tokenizer",
    "ema_momentum",
    "temporal_jepa_loss",
    "update_ema",
]
