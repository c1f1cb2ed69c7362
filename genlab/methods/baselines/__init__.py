"""What the papers compare with: one class each, on the same splits, features and metrics."""
