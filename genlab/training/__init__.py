"""What every method's training shares. Submodules are imported one by one, so that none drags in the others."""
