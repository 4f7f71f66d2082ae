"""Batches to checkpoint: the training loop, on one worker or many."""
