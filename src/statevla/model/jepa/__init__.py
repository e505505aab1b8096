"""Temporal JEPA: tokenizer, encoder and its EMA target, temporal predictor, losses."""

from statevla.model.jepa.encoder import Encoder, ema_momentum, update_ema
from statevla.model.jepa.inverse_dynamics import InverseDynamics
from statevla.model.jepa.keyframe import KeyframeHead
from statevla.model.jepa.loss import (
    JepaLosses,
    covariance_loss,
    keyframe_loss,
    mean_squared_error,
    prediction_loss,
    sigreg,
    variance_loss,
    weighted,
)
from statevla.model.jepa.temporal_predictor import TemporalPredictor
from statevla.model.jepa.tokenizer import Tokenizer

__all__ = [
    "Encoder",
    "InverseDynamics",
    "JepaLosses",
    "KeyframeHead",
    "TemporalPredictor",
    "Tokenizer",
    "covariance_loss",
    "ema_momentum",
    "keyframe_loss",
    "mean_squared_error",
    "prediction_loss",
    "sigreg",
    "update_ema",
    "variance_loss",
    "weighted",
]
