"""Checkpoint to HTTP: the counter as a service."""
