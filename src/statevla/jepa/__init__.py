"""Temporal JEPA: tokenizer, encoder and its EMA target, temporal predictor, losses."""

from statevla.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.jepa.inverse_dynamics import InverseDynamics
from statevla.jepa.keyframe import KeyframeHead, keyframe_loss
from statevla.jepa.loss import JepaLosses, temporal_jepa_loss
from statevla.jepa.regularizers import latent_loss
from statevla.jepa.temporal_predictor import ModulatedPredictor, TemporalPredictor, build_temporal_predictor
from statevla.jepa.tokenizer import Tokenizer

__all__ = [
    "Encoder",
    "InverseDynamics",
    "JepaLosses",
    "KeyframeHead",
    "ModulatedPredictor",
    "TemporalPredictor",
    "Tokenizer",
    "build_temporal_predictor",
    "ema_momentum",
    "keyframe_loss",
    "latent_loss",
    "temporal_jepa_loss",
    "update_ema",
]
