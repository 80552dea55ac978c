"""The stages: what a batch is, what its loss is, what is worth watching. Nothing else."""
