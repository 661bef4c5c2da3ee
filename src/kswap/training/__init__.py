"""Training: streams of batches, the loop over one stage, checkpoints, progress."""
