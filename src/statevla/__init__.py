"""StateVLA: a compact robot policy that learns how the world moves (Temporal JEPA), then acts (flow matching)."""

__version__ = "0.1.0"
