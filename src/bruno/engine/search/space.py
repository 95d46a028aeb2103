"""The space the search draws trials from: named parameters for Optuna, and what they mean as an edit.

Pure: no model, no study. Positions and reaches are in layers (0 to L - 1), so the log can be read beside the
architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from bruno.engine.edits.trial import Kernel, TrialEdit
from bruno.engine.search.profiles import GENERAL, PROFILES, Profile

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

_SCOPES = ("global", "per layer")

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
    directions: int = 1
    """How many directions are removed at each layer: with several, their strength beside the first is searched too."""

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
        if self.directions > 1:
            ranges["further"] = (-0.25, 1.0)  # below 0 counts as 0: the first direction alone has a share of the space
        return ranges

    def distributions(self) -> dict[str, BaseDistribution]:
        """All parameters as Optuna draws them, in the order in which it does: by name."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        floats = {name: FloatDistribution(low, high) for name, (low, high) in self.ranges().items()}
        return dict(sorted({"direction_scope": CategoricalDistribution(_SCOPES), **floats}.items()))

    def suggest(self, trial: optuna.Trial) -> Parameters:
        """Draw one trial's parameters."""
        drawn: Parameters = {"direction_scope": trial.suggest_categorical("direction_scope", _SCOPES)}
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
            further=max(0.0, float(parameters.get("further", 1.0))),
        )

    def shown(self, parameters: Mapping[str, float | str]) -> Parameters:
        """The parameters that mean something in this trial, for the log."""
        idle = {"direction_index"} if parameters["direction_scope"] == "per layer" else set()
        return {name: value for name, value in parameters.items() if name not in idle}

    def warm_starts(self, family: str = "") -> list[Parameters]:
        """Trials worth trying before any random one: the plain ways to remove a direction, then the family's published
        settings where there are some (`profiles.py` says where they come from)."""
        known = (PROFILES[family],) if family in PROFILES else ()
        return [self._parameters(profile) for profile in (*GENERAL, *known)]

    def _parameters(self, profile: Profile) -> Parameters:
        """A profile in shares of L - 1 -> parameters in layers, moved into the space's ranges."""
        ranges = self.ranges()
        parameters: Parameters = {"direction_scope": profile.scope}
        wanted = {"direction_index": profile.direction_index * self.last, "further": 1.0}
        for component in self.components:
            weight, position, fraction, reach = profile.mlp if component.startswith("mlp.") else profile.attention
            wanted[f"{component}.max_weight"] = weight
            wanted[f"{component}.position"] = position * self.last
            wanted[f"{component}.min_fraction"] = fraction
            wanted[f"{component}.reach"] = reach * self.last
        return parameters | {name: min(max(wanted[name], low), high) for name, (low, high) in ranges.items()}
