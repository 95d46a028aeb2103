"""bruno: rent a GPU, reshape a language model's behaviour on it, bring the result home.

Rooms, top to bottom: `tui` and `cli` (faces), `operator` (the one service behind them), `runs`, `fleet`, `guard`,
`settings`. `records`, `assistant`, `engine` and `sandbox` stand beside them. Importing this package imports nothing else.
"""

__version__ = "0.1.0"
