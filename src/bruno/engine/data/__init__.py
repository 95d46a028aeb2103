"""Behaviours as TOML files, and where prompts come from."""
