"""Training: one loop, its optimizers and schedules, and what makes it exact through any failure."""
