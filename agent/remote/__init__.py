"""The remote configuration, models and commands of a station: signed envelopes, and what is done with them.

strict_json.py    JSON from strangers, bounded before it is parsed
envelope.py       who says what to whom, until when: sealed, unsealed, admitted
inbox.py          from the link's thread to the main one, bounded
store.py          what was accepted, on disk in two slots

configuration.py  which tunables are active: on trial, kept, rolled back, refused
overlay.py        a change laid over the file, judged as a whole
trigger_watch.py  whether the triggers stay sane
known_events.py   what a change would have made of recorded events

model_order.py    a bundle, named by the hashes of its pieces; download.py fetches them
trial.py          the bundle in a process of its own
models.py         step by step to a model that serves; slots.py remembers which does,
                  crash_guard.py whether the agent lives with it
commands.py       evidence, test alarm, self-test, a model taken or given back
"""
