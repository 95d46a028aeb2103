"""The model: read into memory, its writers known, prompts encoded, answers generated, residuals captured."""
