"""Mamba-1 (Gu & Dao 2023): selective scan, block and stack, exact and fast on CPU and CUDA."""

from statevla.model.mamba.backends import describe_backends
from statevla.model.mamba.block import MambaBlock
from statevla.model.mamba.selective_scan import selective_scan
from statevla.model.mamba.stack import MambaStack

__all__ = ["MambaBlock", "MambaStack", "describe_backends", "selective_scan"]
