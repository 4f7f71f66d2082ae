"""The core that training and serving share: pixels, model, metrics, checkpoint."""
