"""Many trainings to the best one: the search over learning rate and batch size."""
