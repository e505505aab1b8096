"""A policy over the wire: server (needs torch), light client (`statevla.serving.client`, without it), shared codec.

Nothing is imported here, so that the client stays light.
"""
