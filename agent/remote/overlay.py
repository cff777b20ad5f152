"""A change of the tunables laid over those of the configuration file, and judged as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.config.explain import dotted, printable, validate
from agent.config.file import TunablesConfig
from agent.errors import ControlError
from agent.messages.schema import TEXT_LIMIT


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


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: _merged(below.get(name), value) for name, value in above.items()}}
