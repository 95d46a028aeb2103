"""Typed, documented settings: command line > environment (`BRUNO_`) > config.toml > default.

`engine.py` and `console.py` are the schema, `fields.py` the list read off it, `load.py` the reading, `render.py` the writing
of config.toml, `paths.py` where state lives, `secrets.py` what must never be stored or shown.
"""
