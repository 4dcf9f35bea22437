"""Measurements of medcheck itself: what its parts can do on this machine."""
