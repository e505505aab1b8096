"""A checkpoint acts: chunks, sessions, the surprise alarm."""
