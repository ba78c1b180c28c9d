"""Neural networks as weighted graphs."""
