"""Training recipes on TRL and accelerate."""
