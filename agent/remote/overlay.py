"""A change of the tunables laid over those of the configuration file, and judged as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.config.explain import dotted, printable, validate
from agent.config.file import TunablesConfig
from agent.config.yaml import YamlFault, parse
from agent.errors import ConfigError, ControlError
from agent.messages.schema import TEXT_LIMIT
from agent.remote.envelope import MAX_BODY_BYTES


def laid_over(below: TunablesConfig, content: Mapping[str, Any]) -> TunablesConfig:
    """``below`` with what ``content`` says: sections are merged, everything else is replaced.

    Raises:
        ControlError: ``invalid``, with every fault.
    """
    whole = _merged(below.model_dump(mode="json", exclude_unset=True), content)
    found, findings = validate(TunablesConfig, whole, {})
    if found is None:
        faults = "; ".join(f"{printable(dotted(f.loc))} {f.reason}" for f in findings)
        raise ControlError("invalid", faults[:TEXT_LIMIT], "`talus docs configuration` lists what `tunables` may hold")
    return found


def read_change(path: Path) -> dict[str, Any]:
    """What a YAML file wants to be changed: the sections of ``tunables``, with or without that word around them.

    Raises:
        ConfigError: the file cannot be read.
    """
    hint = "write the sections of tunables that are to change, such as `trigger: {on: 5.0}`"
    try:
        with path.open("rb") as file:
            document = parse(file.read(MAX_BODY_BYTES).decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", hint) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", hint) from None
    except YamlFault as error:
        raise ConfigError(f"{path}:{error.fault.spot.line}: {error.fault.reason}", hint) from None
    if document.faults:
        fault = document.faults[0]
        raise ConfigError(f"{path}:{fault.spot.line}: {printable(dotted(fault.loc))} {fault.reason}", hint)
    value = document.value
    return value["tunables"] if value.keys() == {"tunables"} and isinstance(value["tunables"], dict) else value


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: _merged(below.get(name), value) for name, value in above.items()}}
