"""Settings in force: command line > environment > config.toml > default, merged field by field.

The environment and the file are read and merged by pydantic-settings. The command line is not, because its own source
takes `--flag` or `--flag true` but not both, prints a usage page where one line with the nearest name is wanted, and knows
no short form of a unique nested name; `parse_arguments` turns arguments into the nested dict that it is given instead.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from bruno.errors import InputError
from bruno.settings.console import ModelAlias, Settings
from bruno.settings.fields import Setting, all_settings, nearest, short_names
from bruno.settings.paths import paths
from bruno.settings.secrets import hide_url

RESERVED = frozenset({"BRUNO_HOME", "BRUNO_CONFIG", "BRUNO_KEYMAP", "BRUNO_SANDBOX_INSTANCE"})
"""Environment names with our prefix that are not settings."""
_TRUE, _FALSE = frozenset({"true", "yes", "on", "1"}), frozenset({"false", "no", "off", "0"})


class _Sources(BaseSettings, Settings):  # type: ignore[misc]
    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="BRUNO_", env_nested_delimiter="__", protected_namespaces=()
    )


@dataclass(frozen=True)
class Arguments:
    """A parsed command line: what was set (nested), what stood alone, and the config file named."""

    values: dict[str, Any] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    config: Path | None = None


def load(argv: Sequence[str] = (), *, environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """The settings in force for these arguments.

    Args:
        argv: arguments after the command's name; the first that stands alone is the model.
        environ: the environment (default: the process's own).
        cwd: where `config.toml` is looked for first (default: the working directory).

    Raises:
        InputError: an unknown name (with the nearest ones), a value of the wrong type or out of range, a missing or broken file.
    """
    arguments = parse_arguments(argv)
    if len(arguments.positional) > 1:
        raise InputError(
            f"one model at a time, not {' and '.join(arguments.positional)}", fix="Quote names with blanks"
        )
    values = dict(arguments.values)
    if arguments.positional:
        if values.get("model", arguments.positional[0]) != arguments.positional[0]:
            raise InputError(f"two models given: {arguments.positional[0]} and {values['model']}")
        values["model"] = arguments.positional[0]
    return resolve(values, config=arguments.config, environ=environ, cwd=cwd)


def resolve(
    values: dict[str, Any],
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Settings:
    """As `load`, for values already given as a nested dict (they win over everything else)."""
    env = dict(os.environ if environ is None else environ)
    path = find_config(config, env, cwd)
    file_values = _unlike_default(_read_file(path), Settings().model_dump(mode="json")) if path else {}
    _check_environment(env)

    class Sources(_Sources):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], **_: PydanticBaseSettingsSource
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            environment = EnvSettingsSource(settings_cls)
            environment.env_vars = {key.lower(): value for key, value in env.items()}
            return (
                InitSettingsSource(settings_cls, values),
                environment,
                InitSettingsSource(settings_cls, file_values),
            )

    try:
        merged = Sources()
    except SettingsError as error:
        raise InputError(
            f"the environment cannot be read: {error}", fix="Lists and tables in the environment are JSON"
        ) from error
    except ValidationError as error:
        raise InputError(_explain(error, values, file_values, path)) from error
    # Only what was said is passed on, so that `model_fields_set` tells it from a default (a behaviour's own defaults
    # give way to the first, not to the second).
    settings = Settings.model_validate(merged.model_dump(exclude_unset=True))
    own = settings.models if "models" in settings.model_fields_set else {}
    settings.models = {**_shipped_models(settings), **own}
    settings.gpus = {**Settings().gpus, **settings.gpus}
    settings._config_folder = path.absolute().parent if path else None
    hide_url(settings.search.storage)  # a database's address may hold its password
    return settings


def _shipped_models(settings: Settings) -> dict[str, ModelAlias]:
    """The short names that ship. Their own number of trials (and the time measured for it) gives way to one the person said."""
    shipped = Settings().models
    if "trials" not in settings.search.model_fields_set:
        return shipped
    return {name: about.model_copy(update={"trials": 0, "hours": 0.0}) for name, about in shipped.items()}


def find_config(config: Path | None, environ: Mapping[str, str], cwd: Path | None = None) -> Path | None:
    """`--config` (or BRUNO_CONFIG), else ./config.toml, else the user's config folder; None when there is none."""
    named = config or (Path(environ["BRUNO_CONFIG"]) if environ.get("BRUNO_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise InputError(f"no config file at {named}", fix="Check --config or BRUNO_CONFIG")
        return named
    for candidate in ((cwd or Path.cwd()) / "config.toml", paths(dict(environ)).config):
        if candidate.is_file():
            return candidate
    return None


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Split arguments into settings and what stands alone. `--` ends the settings.

    Accepts `--search.trials 8`, `--search.trials=8`, the short `--trials 8` where the leaf is unique, kebab or snake case,
    and booleans as `--warm-start`, `--no-warm-start`, `--warm-start true`.
    """
    values: dict[str, Any] = {}
    positional: list[str] = []
    config: Path | None = None
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positional += rest
            break
        if not argument.startswith("--"):
            if argument.startswith("-") and len(argument) > 1:
                raise InputError(f"unknown option {argument}", fix="Settings are written --name value")
            positional.append(argument)
            continue
        name, equals, inline = argument[2:].partition("=")
        if name == "config":
            config = Path(_value_of("config", inline if equals else None, rest))
            continue
        setting, negated = _find(name)
        _assign(values, setting.name, _read(setting, inline if equals else None, rest, negated=negated))
    return Arguments(values, positional, config)


def _find(name: str) -> tuple[Setting, bool]:
    normal = name.replace("-", "_")
    settings, short = all_settings(), short_names()
    for candidate, negated in ((normal, False), (_without_no(normal), True)):
        full = candidate if candidate in settings else short.get(candidate or "")
        if full and not settings[full].is_table and (not negated or settings[full].is_bool):
            return settings[full], negated
    full = normal if normal in settings else short.get(normal, "")
    if full and settings[full].is_table:
        raise InputError(f"--{name} is a table", fix=f"Write [{full}.NAME] in config.toml")
    raise InputError(f"unknown setting --{name}", fix=nearest(normal))


def _without_no(name: str) -> str | None:
    group, dot, leaf = name.rpartition(".")
    if leaf.startswith("no_"):
        return f"{group}{dot}{leaf[3:]}"
    return name[3:] if name.startswith("no_") else None


def _read(setting: Setting, inline: str | None, rest: list[str], *, negated: bool) -> Any:
    if setting.is_bool:
        word = inline
        if word is None and rest and rest[0].lower() in _TRUE | _FALSE and not negated:
            word = rest.pop(0)
        if word is None:
            return not negated
        if negated or word.lower() not in _TRUE | _FALSE:
            raise InputError(f"--{setting.name} takes true or false, not {word!r}")
        return word.lower() in _TRUE
    value = _value_of(setting.name, inline, rest)
    return [part.strip() for part in value.split(",") if part.strip()] if setting.is_list else value


def _value_of(name: str, inline: str | None, rest: list[str]) -> str:
    if inline is not None:
        return inline
    if not rest or rest[0].startswith("--"):
        raise InputError(f"--{name} needs a value")
    return rest.pop(0)


def _assign(values: dict[str, Any], name: str, value: Any) -> None:
    *groups, leaf = name.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[leaf] = value


def _read_file(path: Path) -> dict[str, Any]:
    try:
        # utf-8-sig: an editor's byte order mark is not part of the first key.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", fix="Save it again as UTF-8") from error
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    _check_names(values, str(path))
    return values


def _unlike_default(values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A file's values without those that repeat a default.

    The generated config.toml lists every default; a list of them is no wish of the person's, and must not silence the
    defaults that a behaviour's own file brings. A table of named things ([models.NAME]) is one value: said whole or not at all.
    """
    said = {}
    for name, value in values.items():
        default = defaults.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            table = all_settings().get(f"{prefix}{name}")
            if table is not None and table.is_table:
                value = {key: row for key, row in value.items() if not _repeats(row, default.get(key))}  # noqa: PLW2901
            else:
                value = _unlike_default(value, default, f"{prefix}{name}.")  # noqa: PLW2901
            if not value:
                continue
        elif value == default and type(value) is type(default):
            continue
        said[name] = value
    return said


def _repeats(row: Any, default: Any) -> bool:
    both = isinstance(row, dict) and isinstance(default, dict)
    return both and all(name in default and default[name] == value for name, value in row.items())


def _check_names(values: dict[str, Any], where: str, prefix: str = "") -> None:
    settings = all_settings()
    groups = {setting.group for setting in settings.values()}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name in settings:
            continue
        if name in groups and isinstance(value, dict):
            _check_names(value, where, f"{name}.")
        elif name in groups:
            raise InputError(f"{where}: {name} is a table", fix=f"Write [{name}] and its settings below it")
        else:
            raise InputError(f"{where}: unknown setting {name}", fix=nearest(name))


def _check_environment(environ: Mapping[str, str]) -> None:
    settings = all_settings()
    tables = tuple(f"{name}." for name, setting in settings.items() if setting.is_table)
    groups = {setting.group for setting in settings.values()}
    for key in environ:
        if not key.startswith("BRUNO_") or key in RESERVED:
            continue
        name = key.removeprefix("BRUNO_").lower().replace("__", ".")
        if name not in settings and name not in groups and not name.startswith(tables):
            raise InputError(f"the environment variable {key} is no setting", fix=nearest(name))


def _explain(error: ValidationError, values: dict[str, Any], file_values: dict[str, Any], path: Path | None) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    name = ".".join(location)
    if _holds(values, location):
        where = "on the command line"
    elif f"BRUNO_{'__'.join(location).upper()}" in os.environ:
        where = "in the environment"
    elif _holds(file_values, location):
        where = f"in {path}"
    else:
        where = "in the settings"
    message = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "extra_forbidden":
        return f"unknown setting {name} {where}. {nearest(name)}"
    return f"{name} {where}: {message}, not {first['input']!r}"


def _holds(values: Any, location: list[str]) -> bool:
    for part in location:
        if isinstance(values, list) and part.isdigit():
            return True
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True
