"""Broken configurations, each with everything that a stranger is to be told about it."""

from __future__ import annotations

from agent.config.yaml import MAX_BYTES

STATION = "station: {network: XX, station: SLOPE}\n"
BASE = STATION + "source: {kind: archive, paths: [.]}\n"

BROKEN: dict[str, tuple[str | bytes, list[str]]] = {
    "an unknown key": (
        BASE + "tunables:\n  trigger:\n    thresold: 4\n    ofF: 1\n    lo_hz: 2\n",
        [
            "site.yaml:5: tunables.trigger.thresold: is not a setting; tunables.trigger may hold low_hz, high_hz, "
            "order, sta_s, lta_s, on, off, combine, components_needed, min_duration_s, max_duration_s, merge_s, "
            "long_gap_s, max_component_lag_s, slow",
            "site.yaml:6: tunables.trigger.ofF: is not a setting; did you mean off?",
            "site.yaml:7: tunables.trigger.lo_hz: is not a setting; did you mean low_hz?",
        ],
    ),
    "a key in the wrong section": (
        BASE + "lta_s: 60\n",
        ["site.yaml:3: lta_s: is not a setting here; it belongs at tunables.trigger.lta_s"],
    ),
    "a key that belongs deeper in the same section": (
        "station: {network: XX, station: SLP}\nsource: {kind: seedlink, host: 10.0.0.2}\n",
        [
            "site.yaml:2: source.servers: is required (servers, each with its own connection)",
            "site.yaml:2: source.host: is not a setting here; it belongs at source.servers[].host",
        ],
    ),
    "what is required is missing": (
        "station:\n  network: XX\nmqtt:\n  port: 1883\n",
        [
            "site.yaml:1: station.station: is required (FDSN station code)",
            "site.yaml:1: source: is required (where samples come from)",
            "site.yaml:3: mqtt.host: is required (name or address of the broker)",
        ],
    ),
    "codes": (
        "station: {network: xx, station: 0123}\nsource: {kind: archives, paths: [.]}\n",
        [
            "site.yaml:1: station.network: must be 1 to 8 upper-case letters, digits or '-' (FDSN source identifiers) "
            "(given: xx)",
            "site.yaml:1: station.station: must be text; put it in quotes (given: 0123)",
            "site.yaml:2: source.kind: must be archive, seedlink, folder, shake_udp, simulator; did you mean archive? "
            "(given: archives)",
        ],
    ),
    "numbers": (
        BASE + "tunables:\n  trigger:\n    on: 4,5\n    off: yes\n    order: 4.5\n    sta_s: 1 s\n    lta_s: '30'\n"
        "    low_hz: .NaN\n    high_hz: -.INF\n    merge_s: 61\n    components_needed: true\n",
        [
            "site.yaml:5: tunables.trigger.on: must be a number, with a decimal point, not a comma (given: 4,5)",
            "site.yaml:6: tunables.trigger.off: must be a number (given: yes)",
            "site.yaml:7: tunables.trigger.order: must be a whole number (given: 4.5)",
            "site.yaml:8: tunables.trigger.sta_s: must be a number alone; its unit is in the setting's name "
            "(given: 1 s)",
            "site.yaml:9: tunables.trigger.lta_s: must be a number, without quotes (given: '30')",
            "site.yaml:10: tunables.trigger.low_hz: must be an ordinary number, not nan or infinity (given: .NaN)",
            "site.yaml:11: tunables.trigger.high_hz: must be an ordinary number, not nan or infinity (given: -.INF)",
            "site.yaml:12: tunables.trigger.merge_s: must be 0 to 60 (a trigger that begins this soon after the last "
            "one is part of it, seconds) (given: 61)",
            "site.yaml:13: tunables.trigger.components_needed: must be a whole number (given: true)",
        ],
    ),
    "fields that contradict each other": (
        BASE + "tunables:\n  trigger:\n    low_hz: 30\n    sta_s: 60\n    off: 5\n    max_duration_s: 5\n"
        "    min_duration_s: 5\n",
        [
            "site.yaml:5: tunables.trigger.low_hz: must be below high_hz (20) (given: 30)",
            "site.yaml:6: tunables.trigger.sta_s: must be shorter than lta_s (30) (given: 60)",
            "site.yaml:7: tunables.trigger.off: must be below on (4), or a trigger would end as it begins (given: 5)",
            "site.yaml:9: tunables.trigger.min_duration_s: must be shorter than max_duration_s (5) (given: 5)",
        ],
    ),
    "a contradiction with a default is told at what was written": (
        BASE + "tunables: {trigger: {high_hz: 0.5}}\n",
        [
            "site.yaml:3: tunables.trigger.high_hz: does not fit: low_hz must be below high_hz (0.5) (given: 0.5)",
        ],
    ),
    "a contradiction beside another error": (
        BASE + "tunables: {trigger: {on: 2, off: 3, order: many}, verdict: {at_s: [3, 10, 5]}}\n",
        [
            "site.yaml:3: tunables.trigger.order: must be a whole number (given: many)",
            "site.yaml:3: tunables.verdict.at_s[2]: must be later than the one before it (10) (given: 5)",
            "site.yaml:3: tunables.trigger.off: must be below on (2), or a trigger would end as it begins (given: 3)",
        ],
    ),
    "no contradiction is invented from a value that is wrong itself": (
        BASE + "tunables: {trigger: {on: high, off: 5}}\n",
        ["site.yaml:3: tunables.trigger.on: must be a number (given: high)"],
    ),
    "verdicts": (
        BASE + "tunables:\n  verdict:\n    at_s: [3, '5', 0.5, 90]\n",
        [
            "site.yaml:5: tunables.verdict.at_s[1]: must be a number, without quotes (given: '5')",
            "site.yaml:5: tunables.verdict.at_s[2]: must be at least 1, below 81.92 (an entry of at_s) (given: 0.5)",
            "site.yaml:5: tunables.verdict.at_s[3]: must be at least 1, below 81.92 (an entry of at_s) (given: 90)",
        ],
    ),
    "rules": (
        BASE + "tunables:\n  policy:\n    on_classifier_failure: allert\n    rules:\n      landslide:\n"
        "        severity: sever\n        confirm: {k: 4, n: 3}\n        retract_below: 0.9\n"
        "        escalate: [{severity: extreme}, {severity: minor, min_events: 2}, {min_probability: 2}]\n"
        "      rockfall: {}\n      blast: {severity: minor, confirm: {k: 12, n: 12}}\n",
        [
            "site.yaml:5: tunables.policy.on_classifier_failure: must be event or alert; did you mean alert? "
            "(given: allert)",
            "site.yaml:8: tunables.policy.rules.landslide.severity: must be none, minor, moderate, severe or extreme; "
            "did you mean severe? (given: sever)",
            "site.yaml:9: tunables.policy.rules.landslide.confirm.k: must not exceed n (3): 4 of 3 verdicts cannot "
            "agree (given: 4)",
            "site.yaml:11: tunables.policy.rules.landslide.escalate[0]: needs a condition: min_probability, "
            "min_duration_s, min_amplitude, min_stations or min_events",
            "site.yaml:11: tunables.policy.rules.landslide.escalate[2].severity: is required (severity from this step "
            "on)",
            "site.yaml:11: tunables.policy.rules.landslide.escalate[2].min_probability: must be above 0, at most 1 "
            "(probability of the label, at least) (given: 2)",
            "site.yaml:12: tunables.policy.rules.rockfall: is not a setting; tunables.policy.rules may hold "
            "earthquake, blast, collapse, landslide, noise",
            "site.yaml:10: tunables.policy.rules.landslide.retract_below: must be below min_probability (0.7), or "
            "alerts would come and go (given: 0.9)",
            "site.yaml:13: tunables.policy.rules.blast.confirm.k: asks for more verdicts than an event gets (10: at "
            "each of verdict.at_s and at its end) (given: 12)",
        ],
    ),
    "a step that is no step": (
        BASE + "tunables:\n  policy:\n    rules:\n      landslide:\n        escalate:\n"
        "          - {severity: minor, min_events: 2}\n",
        [
            "site.yaml:8: tunables.policy.rules.landslide.escalate[0].severity: must be above the rule's own severity "
            "(moderate) (given: minor)"
        ],
    ),
    "the broker": (
        BASE + "mqtt:\n  host: broker:1883\n  port: 70000\n  protocol: 4\n  prefix: talus/#\n  client_id: a b\n"
        "  password_env: talus-password\n  tls: {cert_file: site.yaml}\n",
        [
            "site.yaml:4: mqtt.host: must not hold a port; write that as mqtt.port (given: broker:1883)",
            "site.yaml:5: mqtt.port: must be 1 to 65,535 (TCP port (8883 with tls, else 1883)) (given: 70000)",
            "site.yaml:6: mqtt.protocol: must be auto, 5 or 3.1.1 (given: 4)",
            "site.yaml:7: mqtt.prefix: must be a topic without '+', '#' or blanks that neither begins nor ends with "
            "'/' (given: talus/#)",
            "site.yaml:8: mqtt.client_id: must be 1 to 128 printable ASCII characters without blanks (given: a b)",
            "site.yaml:9: mqtt.password_env: must be the name of an environment variable, such as TALUS_MQTT_PASSWORD, "
            "not its value",
            "site.yaml:10: mqtt.tls.cert_file: is given without key_file; give both or neither (given: site.yaml)",
        ],
    ),
    "passwords": (
        BASE + "mqtt:\n  host: mqtt://me:hunter2@broker\n  password: hunter2\n  password_env: A\n  password_file: f\n",
        [
            "site.yaml:4: mqtt.host: must be a host name or address alone, without mqtt://, user or path "
            "(given: mqtt://***@broker)",
            "site.yaml:5: mqtt.password: is not a setting: a password is never written in this file; use password_file "
            "or password_env",
            "site.yaml:6: mqtt.password_env: is given beside password_file; keep one of them",
            "site.yaml:6: mqtt.password_env: is given without username; a broker wants both or neither",
            "site.yaml:7: mqtt.password_file: is given without username; a broker wants both or neither",
        ],
    ),
    "sections and lists": (
        STATION
        + "source: {kind: archive, paths: records}\nlog: debug\nclassifier: {backends: [cuda, constant, constant]}"
        "\noutbox: [1]\n",
        [
            "site.yaml:2: source.paths: must be a list, such as [a, b] (given: records)",
            "site.yaml:3: log: must be a section: settings on lines of their own, indented below it (level) "
            "(given: debug)",
            "site.yaml:4: classifier.backends[0]: must be one of tensorrt, onnxruntime, constant (constant may name "
            "its label, such as constant:noise) (given: cuda)",
            "site.yaml:5: outbox: must be a section: settings on lines of their own, indented below it (path, max_mb)",
        ],
    ),
    "paths": (
        STATION
        + "source: {kind: archive, paths: ['${HOME}/x', '']}\nstate_dir: 5\nclassifier: {bundle: ~nobody-here/m}\n",
        [
            "site.yaml:2: source.paths[0]: environment variables are not expanded here; write the path itself "
            "(given: '${HOME}/x')",
            "site.yaml:2: source.paths[1]: must not be empty (given: '')",
            "site.yaml:3: state_dir: must be a path, written as text (given: 5)",
            "site.yaml:4: classifier.bundle: begins with '~' but there is no such home folder (given: ~nobody-here/m)",
        ],
    ),
    "half a position": (
        "station: {network: XX, station: SLOPE, latitude_deg: 31, elevation_m: 412 m}\n"
        "source: {kind: archive, paths: [.]}\n",
        [
            "site.yaml:1: station.elevation_m: must be a number alone; its unit is in the setting's name "
            "(given: 412 m)",
            "site.yaml:1: station.latitude_deg: is given without longitude_deg; give both or neither (given: 31)",
        ],
    ),
    "twice, empty, tagged": (
        BASE
        + "log: {level: info}\nlog: {level: debug}\nmqtt:\ntunables: !!python/object:os.system {}\noutbox: {max_mb: "
        "9999999999999999999}\n? [a]\n: b\n",
        [
            "site.yaml:4: log: is given twice (first on line 3); keep one of them",
            "site.yaml:5: mqtt: has no value; give one, or remove the line",
            "site.yaml:6: tunables: YAML tags ('!name') are not used here; remove it",
            "site.yaml:7: outbox.max_mb: has too many digits",
            "site.yaml:8: the name of a setting is plain text",
        ],
    ),
    "a tab": ("station:\n\tnetwork: XX\n", ["site.yaml:2: column 1: a tab; YAML is indented with spaces only"]),
    "indentation": (
        "station:\n  network: XX\n   station: SLOPE\n",
        [
            "site.yaml:3: column 11: a ':' that YAML does not expect; is this line, or the one above, indented wrong? "
            "Text with ': ' needs quotes"
        ],
    ),
    "an open bracket": (
        "station: {network: XX\nsource: {kind: archive}\n",
        ["site.yaml:1: column 10: a bracket that is opened here is not closed, or a comma is missing after it"],
    ),
    "an open quote": ("station: 'XX\n", ["site.yaml:1: column 10: a quote that is opened here is not closed"]),
    "no colon": (
        "station\nnetwork XX\n",
        ["site.yaml:1: column 1: must be a mapping: lines of the form 'name: value'"],
    ),
    "runtimes, records and the page for Prometheus": (
        BASE + "classifier: {backends: [onnxruntime, tensorrt]}\nevidence: {send: alerts, max_mb: 0}\n"
        "health: {prometheus: '0.0.0.0:9464'}\n",
        [
            "site.yaml:3: classifier.backends: must have tensorrt first, and behind it one that serves while its "
            "engine is built",
            "site.yaml:4: evidence.send: sends records, and max_mb is 0: none is kept (given: alerts)",
            "site.yaml:5: health.prometheus: is not a loopback address; give 127.0.0.1:PORT, or set prometheus_remote: "
            "true (given: '0.0.0.0:9464')",
        ],
    ),
    "a runtime twice, and no address": (
        BASE + "classifier: {backends: [onnxruntime, onnxruntime]}\nhealth: {prometheus: 'here:0'}\n",
        [
            "site.yaml:3: classifier.backends: names the same entry twice",
            "site.yaml:4: health.prometheus: must be ADDRESS:PORT, such as 127.0.0.1:9464 or [::1]:9464 "
            "(given: 'here:0')",
        ],
    ),
    "a rate alert": (
        BASE + "tunables:\n  policy:\n    rules:\n      landslide:\n        min_probability: 0.9\n"
        "        sure_probability: 0.8\n        acceleration:\n          window_s: 7200\n"
        "          background_s: 3600\n          escalate: [{severity: minor, min_ratio: 3}]\n",
        [
            "site.yaml:8: tunables.policy.rules.landslide.sure_probability: must not be below min_probability (0.9) "
            "(given: 0.8)",
            "site.yaml:11: tunables.policy.rules.landslide.acceleration.background_s: must not be shorter than "
            "window_s (7200) (given: 3600)",
            "site.yaml:12: tunables.policy.rules.landslide.acceleration.escalate[0].severity: must be above the "
            "alert's own (moderate) (given: minor)",
            "site.yaml:12: tunables.policy.rules.landslide.acceleration.escalate[0].min_ratio: must be above "
            "min_ratio (3) (given: 3)",
        ],
    ),
    "an alias": (
        "station: *hunter2\n",
        [
            "site.yaml:1: column 10: text that begins with '*' needs quotes (it would refer to an anchor that is not "
            "there)"
        ],
    ),
    "a reserved character": (
        "station: @hunter2\n",
        ["site.yaml:1: column 10: a character that YAML reserves stands here; put the text in quotes"],
    ),
    "two documents": (
        BASE + "---\n" + BASE,
        ["site.yaml:3: column 1: '---' begins a second document; write one configuration a file"],
    ),
    "empty": ("# nothing yet\n", ["site.yaml:1: column 1: the file holds no settings"]),
    "a list": ("- station\n", ["site.yaml:1: column 1: must be a mapping: lines of the form 'name: value'"]),
    "Latin-1": (
        STATION.encode() + b"log: {level: d\xe9bug}\n",
        ["site.yaml:2: is not UTF-8 text; save the file in that encoding"],
    ),
    "UTF-16": (BASE.encode("utf-16"), ["site.yaml:1: is not UTF-8 text; save the file in that encoding"]),
    "a binary file": (b"station: \x00\x01\n", ["site.yaml:1: column 10: a control character; is this a text file?"]),
    "a large file": (b"#" * (MAX_BYTES + 1), ["site.yaml: is larger than 256 KiB; is this the configuration?"]),
}
