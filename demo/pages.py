"""The generated pages of the manual: the tables of ``configuration.md``, the JSON Schemas and the AsyncAPI document.

``python -m demo.pages docs`` writes them anew, from the models.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from agent.config.broker import DEFAULT_PREFIX
from agent.config.reference import Entry, catalogue
from agent.messages.payloads import OFFLINE, ONLINE, STOPPED
from agent.messages.schema import MODELS, Payload

BEGIN = "<!-- generated: python -m demo.pages docs -->"
END = "<!-- end of generated part -->"
_RULES = "tunables.policy.rules"
_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_CHANNELS: Mapping[str, tuple[bool, str]] = {
    "availability": (True, "Whether the agent is connected. The broker publishes `offline` from the Last Will."),
    "state": (True, "What runs at the station and why. Published on every connect and change."),
    "health": (True, "Periodic figures of streams, clock, machine, outbox and event rates."),
    "event": (False, "Every revision of every event. Revisions of one event arrive in order."),
    "alert": (False, "Alerts: raise, escalate, retract. They overtake events. MQTT 5 message expiry is set."),
    "envelope": (False, "Smallest and largest sample of each second, ten minutes at a time, where switched on."),
    "last_event": (True, "Summary of the latest event, for those who subscribe later."),
    "last_alert": (True, "Summary of the latest alert, for those who subscribe later."),
    "config/reported": (True, "Which tunables rule, and what became of the orders to change them."),
    "config/set": (True, "A signed order to change the tunables; the station subscribes to it if it trusts a key."),
    "model/reported": (True, "Which model serves, and how far an order to change it is."),
    "model/set": (True, "A signed order to change the model, with the hash of every piece of its bundle."),
    "command": (False, "A signed command: evidence, test_alarm, self_test, promote_model, roll_back_model."),
    "response": (False, "The answer to a command, with its MQTT 5 correlation data. Expires after a day."),
    "model/chunk": (False, "A piece of a model's bundle: its number (4 bytes, big-endian), then up to 32 KiB."),
    "evidence/{event}/{piece}": (
        False,
        "The record of an event, miniSEED, up to 32 KiB a piece: on request or after an alert.",
    ),
}
"""End of the topic: whether it is retained, and what it is."""
_ORDERS = ("config/set", "model/set", "model/chunk", "command")
"""What the station receives."""
_BINARY = ("model/chunk", "evidence/{event}/{piece}")
_PARAMETERS = {
    "network": "FDSN network code",
    "station": "FDSN station code",
    "event": "the event's id with '_' in place of '.', which not every broker takes in a topic",
    "piece": "number of the piece, from 0",
}


def schema_name(model: type[Payload]) -> str:
    """``event`` for ``talus/event/1``."""
    return str(model.model_fields["schema_"].default).split("/")[1]


def schemas() -> dict[str, dict[str, Any]]:
    """File name to JSON Schema (draft 2020-12) of what is published."""
    found = {}
    for model in MODELS.values():
        schema = model.model_json_schema(by_alias=True, mode="serialization")
        name = schema_name(model)
        head = {"$schema": _SCHEMA_DIALECT, "$id": f"talus/{name}/1", "title": model.__name__}
        found[f"{name}.json"] = head | {key: value for key, value in schema.items() if key not in head}
    return dict(sorted(found.items()))


def document() -> dict[str, Any]:
    """The AsyncAPI 3.0 document; its payloads refer to the files of `schemas`."""
    channels, operations, messages = {}, {}, {}
    for place, (retained, summary) in _CHANNELS.items():
        name = place.partition("/{")[0].replace("/", "_")
        address = f"{DEFAULT_PREFIX}/{{network}}/{{station}}/{place}"
        channels[name] = {
            "address": address,
            "description": summary,
            "parameters": {
                parameter: {"$ref": f"#/components/parameters/{parameter}"}
                for parameter in _PARAMETERS
                if f"{{{parameter}}}" in address
            },
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        }
        operations[f"{'receive' if place in _ORDERS else 'publish'}_{name}"] = {
            "action": "receive" if place in _ORDERS else "send",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": summary,
            "bindings": {"mqtt": {"qos": 1, "retain": retained, "bindingVersion": "0.2.0"}},
        }
        messages[name] = _message(place)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Talus",
            "version": "1",
            "description": (
                "What a Talus station publishes over MQTT, QoS 1. Copies of one message have the same `id`, `revision`,"
                " `boot_id` and `seq`. The first two levels of the topic are configurable."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "parameters": {name: {"description": text} for name, text in _PARAMETERS.items()},
            "messages": messages,
        },
    }


def _message(name: str) -> dict[str, Any]:
    if name in _BINARY:
        return {"contentType": "application/octet-stream", "payload": {"type": "string", "format": "binary"}}
    if name not in MODELS:
        return {"contentType": "text/plain", "payload": {"type": "string", "enum": [ONLINE, OFFLINE, STOPPED]}}
    schema = {
        "schemaFormat": "application/schema+json;version=draft-2020-12",
        "schema": {"$ref": f"./schemas/{schema_name(MODELS[name])}.json"},
    }
    return {"contentType": "application/json", "payload": schema}


def files() -> dict[str, str]:
    """Path below ``docs`` to the text of each generated file."""
    found = {f"schemas/{name}": json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}
    found["asyncapi.yaml"] = "# Generated by: python -m demo.pages docs\n" + yaml.safe_dump(
        document(), sort_keys=False, width=120, allow_unicode=True
    )
    return found


def tables() -> str:
    """The reference as Markdown: a table for each section, one for the rules of all labels together."""
    entries = catalogue()
    first, *others = (f"{_RULES}.{label}" for label in entries[_RULES].children)
    lines: list[str] = []
    for path, entry in entries.items():
        if entry.children and not any(path == other or path.startswith(f"{other}.") for other in others):
            name, _, kind = path.replace(first, f"{_RULES}.LABEL").partition(":")
            kind, _, rest = kind.partition(".")
            title = f"`{name}{'.' if rest else ''}{rest}`" if path else "The whole file"
            title += f" with `kind: {kind}`" if kind else ""
            about = [entry.description, ""] if kind and not rest else []
            same = [path.replace(first, other) for other in others] if path.startswith(first) else []
            lines += [f"### {title}", "", *about, *_rows(entries, path, same), ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(entries: dict[str, Entry], path: str, same: list[str]) -> Iterator[str]:
    """The settings of ``path``; where the sections ``same`` have other defaults, these are named as well."""
    yield "| setting | what | kind | bounds | default |"
    yield "|---|---|---|---|---|"
    for name in entries[path].children:
        entry = entries[f"{path}.{name}" if path else name]
        default = "**required**" if entry.required else f"`{entry.default}`" if entry.default else ""
        differing: dict[str, list[str]] = {}
        for other in same:
            if (differs := entries[f"{other}.{name}"].default) != entry.default:
                differing.setdefault(differs, []).append(other.rpartition(".")[2])
        default += "".join(f"; {' and '.join(labels)} `{differs}`" for differs, labels in differing.items())
        yield f"| `{name}` | {entry.description} | {entry.kind} | {entry.bounds} | {default} |"


def rewrite(page: str) -> str:
    """``page`` with the tables between its markers made anew."""
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{tail}"


def main(folder: Path) -> None:
    """Write the pages below ``folder``."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    page = folder / "configuration.md"
    page.write_text(rewrite(page.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
