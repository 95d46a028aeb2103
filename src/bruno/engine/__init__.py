"""The engine: finds the direction that carries a behaviour and searches for the smallest weight edit that removes it.

The story of a run, in the order `run.py` tells it (`command.py` starts it):

1.  `behaviours.py` says what is to be removed: prompts that show it and prompts that do not (`prompts.py`), and how
    its answers are recognised (`refusals.py`).
2.  `loading.py` reads the model; `architectures.py` lists its *writers*, the modules whose output is added to the
    residual stream.
3.  `capture.py` records the residual stream at the last prompt position; `directions.py` turns the difference of the
    two kinds of prompts into a direction for each layer.
4.  `scores.py` counts what the untouched model refuses and keeps its next-token distributions.
5.  `search.py` asks Optuna for trials from `space.py`. A trial is data (`edits.py`): `session.py` applies it around
    the writers while `generate.py` answers the prompts, several trials as rows of one batch. No weight changes.
6.  `choice.py` picks a trial by a stated rule; `bake.py` and `export.py` write it into the stored weights, once; it is
    scored on prompts nobody has seen (`report.py`).

Everything that happens is an event (`events.py`), written by one emitter (`log.py`) into the run's folder
(`folder.py`), and `chat.py` talks to the result. The engine knows nothing of clouds, screens or records: it imports
`bruno.settings` and `bruno.errors` alone, because it is what runs on the rented machine. Importing this package
imports no torch; its modules do when they are used.
"""
