"""Temporal JEPA: tokenizer, encoder and its EMA target, temporal predictor, losses."""

from statevla.model.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.model.jepa.inverse_dynamics import InverseDynamics
from statevla.model.jepa.keyframe import KeyframeHead, keyframe_loss
from statevla.model.jepa.loss import JepaLosses, temporal_jepa_loss
from statevla.model.jepa.regularizers import latent_loss
from statevla.model.jepa.temporal_predictor import ModulatedPredictor, TemporalPredictor, build_temporal_predictor
from statevla.model.jepa.tokenizer import Tokenizer

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
