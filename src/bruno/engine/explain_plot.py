"""The layer plot of a run: direction strength, class separation and the chosen trial's kernels, as PNG or HTML.

Reads `directions.safetensors` (through numpy, never torch) and the report. matplotlib, numpy and safetensors make up
the extra `plot` and are imported when a plot is asked for. The HTML page is one file with an inline SVG and a table of
the same numbers: it needs no script and no network.
"""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bruno.engine.explain import Explanation, Trial
from bruno.engine.folder import DIRECTIONS_FILE, write_whole
from bruno.errors import BrunoError, InputError

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

FORMATS = (".png", ".html")
_NEEDED = ("matplotlib", "numpy", "safetensors")
_MOST_LAYERS = 4096  # more is a broken file, not a model


class NoPlot(BrunoError):
    """The plot cannot be drawn here; the text of the explanation needs nothing of it."""


@dataclass(frozen=True)
class Layers:
    """Numbers of a run by layer, index 0 the embedding's output: arrays of [L + 1].

    Attributes:
        separation: distance of the class means along the direction, in pooled standard deviations.
        strength: norm of the mean difference, in the residual stream's own units; None in folders that lack it.
    """

    separation: np.ndarray
    strength: np.ndarray | None


def need_plot() -> None:
    """Raise NoPlot, naming what is missing, unless the libraries of a plot are installed; imports none of them."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise NoPlot(f"A plot needs {', '.join(missing)}", fix='pip install "bruno[plot]"')


def plot(run: Explanation, folder: Path, target: Path) -> Path:
    """Draw the run in `folder` to `target` (.png or .html) and return it.

    Raises:
        InputError: another ending, or a folder without directions.
        NoPlot: a library is missing, or the file cannot be written.
    """
    if target.suffix not in FORMATS:
        raise InputError(f"A plot is a {' or '.join(FORMATS)} file, not {target.name}")
    need_plot()
    layers = read_layers(folder)
    figure = draw(run, layers)
    content = _png(figure) if target.suffix == ".png" else _page(run, layers, figure).encode()
    try:
        write_whole(target, lambda path: path.write_bytes(content))
    except OSError as error:
        raise NoPlot(f"The plot cannot be written to {target} ({error.strerror})") from error
    return target


def read_layers(folder: Path) -> Layers:
    """The numbers by layer that the run kept beside its directions.

    Raises:
        InputError: there is no such file, or it is not one of a run's.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    path = folder / DIRECTIONS_FILE
    try:
        with safe_open(path, framework="np") as file:
            found: dict[str, Any] = {
                name: np.asarray(file.get_tensor(name), dtype=float)
                for name in ("separation", "strength")
                if name in file.keys()  # noqa: SIM118  (it is no dict)
            }
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {DIRECTIONS_FILE} to plot", fix="Name the run's own folder (--out), not a saved model"
        ) from error
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as directions ({str(error).splitlines()[0]})") from error
    separation, strength = found.get("separation"), found.get("strength")
    if separation is None or separation.ndim != 1 or not 2 <= len(separation) <= _MOST_LAYERS:
        raise InputError(f"{path} holds no class separation by layer")
    if strength is not None and strength.size and strength.shape != separation.shape:
        raise InputError(f"{path} holds a strength for other layers than its separation")
    return Layers(separation, strength if strength is not None and strength.size else None)


def kernels(trial: Trial | None, blocks: int) -> dict[str, list[float]]:
    """Strength of the chosen trial's edit by component, at each of `blocks` decoder blocks.

    The tent of `edits.build.Kernel`, written again because that one comes with torch; a test holds them equal.
    """
    found: dict[str, list[float]] = {}
    parameters = trial.parameters if trial else {}
    for name in parameters:
        if not name.endswith(".max_weight"):
            continue
        component = name.removesuffix(".max_weight")
        values = [parameters.get(f"{component}.{part}") for part in ("max_weight", "position", "min_fraction", "reach")]
        peak, position, fraction, reach = (float(value) if isinstance(value, float) else 0.0 for value in values)
        found[component] = [_tent(block, peak, position, fraction, reach) for block in range(blocks)]
    return found


def _tent(block: int, peak: float, position: float, fraction: float, reach: float) -> float:
    distance = abs(block - position)
    if distance > reach:
        return 0.0
    slope = distance / reach * (fraction - 1.0) if reach > 0 else 0.0
    return max(0.0, peak * (1.0 + slope))


def draw(run: Explanation, layers: Layers) -> Figure:
    """Three panels above one another over the depth of the model, as a matplotlib figure."""
    from matplotlib.figure import Figure

    after = range(len(layers.separation))
    figure = Figure(figsize=(9, 8), layout="constrained")
    strength, separation, edit = figure.subplots(3, 1, sharex=True)
    figure.suptitle(_literal(f"{run.behaviour} in {run.model}"))
    if layers.strength is None:
        strength.text(0.5, 0.5, "not kept by this run", ha="center", transform=strength.transAxes)
    else:
        strength.plot(after, layers.strength, marker=".", color="C0")
    strength.set_ylabel("direction strength\n(norm of the mean difference)")
    separation.plot(after, layers.separation, marker=".", color="C1")
    separation.set_ylabel("class separation\n(standard deviations)")
    for style, (component, weights) in zip(
        _STYLES * 8, kernels(run.chosen, len(layers.separation) - 1).items(), strict=False
    ):
        edit.plot(range(1, len(layers.separation)), weights, style, label=_literal(component))
    edit.set_ylabel(f"edit of trial {run.chosen.trial}\n(strength)" if run.chosen else "edit\n(nothing chosen)")
    if edit.lines:
        edit.legend()
    edit.set_xlabel("decoder block (0: embedding)")
    for axes in (strength, separation, edit):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    return figure


_STYLES = ["-o", "--s", "-.^", ":D"]  # told apart without colour


def _literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign would begin a formula; control characters have no glyph."""
    return "".join(char for char in text if char.isprintable())[:120].replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()


def _page(run: Explanation, layers: Layers, figure: Figure) -> str:
    """One self-contained page: the explanation, the figure as SVG, and the numbers behind it."""
    from bruno.engine.explain_text import lines

    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    components = kernels(run.chosen, len(layers.separation) - 1)
    heads = ["after block", "strength", "separation", *components]
    rows = []
    for layer, separation in enumerate(layers.separation):
        norm = "" if layers.strength is None else f"{layers.strength[layer]:.4g}"
        weights = [f"{values[layer - 1]:.3f}" if layer else "" for values in components.values()]
        rows.append([str(layer) if layer else "embedding", norm, f"{separation:.3f}", *weights])
    title = html.escape(f"{run.behaviour} in {run.model}")
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}}svg{{max-width:100%;height:auto}}
pre{{white-space:pre-wrap}}td,th{{padding:.1em .8em;text-align:right}}</style></head>
<body><h1>{title}</h1>
{svg}
<pre>{html.escape(chr(10).join(lines(run)))}</pre>
<table><tr>{"".join(f"<th>{html.escape(head)}</th>" for head in heads)}</tr>
{body}
</table></body></html>
"""
