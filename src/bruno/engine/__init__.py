"""The engine: finds the direction that carries a behaviour and searches for the smallest weight edit that removes it.

The story of a run, in the order `run.py` tells it (`command.py` starts it):

1.  `data/` says what is to be removed: a behaviour names prompts that show it and prompts that do not, and how its
    answers are recognised (`scoring/`).
2.  `model/` reads the model and lists its *writers*, the modules whose output is added to the residual stream; it
    records the residual stream at the last prompt position and generates answers.
3.  `directions/` turns what the two kinds of prompts leave in the stream into directions for each layer.
4.  `scoring/` counts what the untouched model refuses and keeps its next-token distributions.
5.  `search/` asks Optuna for trials. A trial is data (`edits/`): hooks apply it around the writers while the prompts are
    answered, several trials as rows of one batch. No weight changes.
6.  A trial is chosen by a stated rule; `export/` writes it into the stored weights, once; it is scored on prompts nobody
    has seen (`report.py`).

Everything that happens is an event (`events.py`), written by one emitter (`log.py`) into the run's folder
(`folder.py`), and `chat.py` talks to the result. The engine knows nothing of clouds, screens or records: it imports
`bruno.settings` and `bruno.errors` alone, because it is what runs on the rented machine. Importing this package
imports no torch; its modules do when they are used.
"""
