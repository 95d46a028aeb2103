"""The space the search draws trials from: named parameters for Optuna, and what they mean as an edit.

Pure: no model, no study. Positions and reaches are in layers (0 to L - 1), so the log can be read beside the
architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from bruno.engine.edits.build import Kernel, TrialEdit

if TYPE_CHECKING:
    import optuna

Parameters = dict[str, float | str]
"""A trial as Optuna stores it: parameter name -> value."""


@dataclass(frozen=True)
class Space:
    """All parameters of a trial for a model with `layers` blocks and these writer components.

    Every parameter is drawn in every trial (the direction's index too, where the scope makes it idle): a space of one
    shape is what lets TPE model its parameters jointly.
    """

    layers: int
    components: tuple[str, ...]

    @property
    def last(self) -> int:
        """Index of the last block, L - 1; at least 1 so that ranges have width."""
        return max(1, self.layers - 1)

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each number that is drawn."""
        last = self.last
        ranges = {"direction_index": (0.4 * last, 0.9 * last)}
        for component in self.components:
            # Below 0 counts as 0: it gives "leave the MLP alone" a share of the space instead of a single point.
            lowest = -0.25 if component.startswith("mlp.") else 0.8
            ranges[f"{component}.max_weight"] = (lowest, 1.5)
            ranges[f"{component}.position"] = (0.6 * last, 1.0 * last)
            ranges[f"{component}.min_fraction"] = (0.0, 1.0)
            ranges[f"{component}.reach"] = (min(1.0, 0.6 * last), max(1.0, 0.6 * last))
        return ranges

    def suggest(self, trial: optuna.Trial) -> Parameters:
        """Draw one trial's parameters."""
        drawn: Parameters = {"direction_scope": trial.suggest_categorical("direction_scope", ["global", "per layer"])}
        for name, (low, high) in self.ranges().items():
            drawn[name] = trial.suggest_float(name, low, high)
        return drawn

    def edit(self, parameters: Mapping[str, float | str]) -> TrialEdit:
        """What the parameters mean."""
        scope = cast(Literal["global", "per layer"], parameters["direction_scope"])
        return TrialEdit(
            scope=scope,
            direction_index=float(parameters["direction_index"]) if scope == "global" else None,
            kernels={
                component: Kernel(
                    max_weight=float(parameters[f"{component}.max_weight"]),
                    position=float(parameters[f"{component}.position"]),
                    min_fraction=float(parameters[f"{component}.min_fraction"]),
                    reach=float(parameters[f"{component}.reach"]),
                )
                for component in self.components
            },
        )

    def shown(self, parameters: Mapping[str, float | str]) -> Parameters:
        """The parameters that mean something in this trial, for the log."""
        idle = {"direction_index"} if parameters["direction_scope"] == "per layer" else set()
        return {name: value for name, value in parameters.items() if name not in idle}

    def warm_starts(self) -> list[Parameters]:
        """Trials worth trying before any random one, whatever the family.

        They span the plain ways to remove a direction: one direction from a little past the middle, where single
        directions carry most of a refusal (Arditi et al. 2024, arXiv:2406.11717, choose layers there), removed whole
        from everything, from attention alone, and each layer's own, removed gently.
        """
        return [
            self._profile("global", 0.6, attention=1.0, mlp=1.0, position=0.8, min_fraction=1.0, reach=0.6),
            self._profile("global", 0.6, attention=1.0, mlp=-0.1, position=0.8, min_fraction=1.0, reach=0.6),
            self._profile("per layer", 0.6, attention=0.9, mlp=0.5, position=0.7, min_fraction=0.3, reach=0.4),
        ]

    def _profile(
        self,
        scope: str,
        index: float,
        *,
        attention: float,
        mlp: float,
        position: float,
        min_fraction: float,
        reach: float,
    ) -> Parameters:
        """A profile in shares of L - 1 -> parameters in layers."""
        parameters: Parameters = {"direction_scope": scope, "direction_index": index * self.last}
        for component in self.components:
            parameters[f"{component}.max_weight"] = mlp if component.startswith("mlp.") else attention
            parameters[f"{component}.position"] = position * self.last
            parameters[f"{component}.min_fraction"] = min_fraction
            parameters[f"{component}.reach"] = max(reach * self.last, min(1.0, 0.6 * self.last))
        return parameters
