"""Mamba-1 (Gu & Dao 2023): selective scan, block and stack, exact and fast on CPU and CUDA."""

from statevla.mamba.backends import BackendChoice, describe_backends
from statevla.mamba.block import MambaBlock, MambaCache
from statevla.mamba.inference import PackedLinear, prepare_for_inference
from statevla.mamba.norm import RMSNorm
from statevla.mamba.selective_scan import selective_scan
from statevla.mamba.stack import GatedMLP, MambaStack

__all__ = [
    "BackendChoice",
    "GatedMLP",
    "MambaBlock",
    "MambaCache",
    "MambaStack",
    "PackedLinear",
    "RMSNorm",
    "describe_backends",
    "prepare_for_inference",
    "selective_scan",
]
