"""Mamba-1 (Gu & Dao 2023): selective scan, block and stack, exact and fast on CPU and CUDA."""

from statevla.model.mamba.backends import BackendChoice, describe_backends
from statevla.model.mamba.block import MambaBlock, MambaCache
from statevla.model.mamba.norm import RMSNorm
from statevla.model.mamba.selective_scan import selective_scan
from statevla.model.mamba.stack import GatedMLP, MambaStack

__all__ = [
    "BackendChoice",
    "GatedMLP",
    "MambaBlock",
    "MambaCache",
    "MambaStack",
    "RMSNorm",
    "describe_backends",
    "selective_scan",
]
