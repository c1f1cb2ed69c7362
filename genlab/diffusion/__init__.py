"""What all methods that tune diffusion models share. Submodules are imported one by one, so that none drags in the others."""
