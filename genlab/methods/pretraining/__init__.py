"""How the tiny models are trained; usable on own data too."""
