"""Edits as data: what a trial does to each writer, as hooks around the running modules and baked into weights."""
