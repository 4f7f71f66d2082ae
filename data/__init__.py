"""Source to batches: a bucket laid out like ABID becomes decoded, labelled rows."""
