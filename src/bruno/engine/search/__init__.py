"""The study: its space, its warm starts, ask and tell with Optuna, the choice of a trial."""
