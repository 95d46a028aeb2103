"""The chosen edit written down: the reshaped model, an adapter, what makes the run again."""
