"""Losses as pure functions of tensors, and the memories that some of them need."""
