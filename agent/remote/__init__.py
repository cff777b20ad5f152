"""The remote configuration, models and commands of a station: signed envelopes, and what is done with them.

envelope.py       an order and its signature, checked (desk/push/signing.py makes them)
gate.py           the one way in: from the broker, through every check, onto the disk

configuration.py  which tunables are active: on trial, kept, rolled back, refused
overlay.py        a change laid over the file, checked as a whole
trigger_watch.py  whether the triggers stay sane
known_events.py   what a change would have made of recorded events

model_order.py    a bundle, named by the hashes of its pieces; download.py fetches them
trial.py          the bundle in a process of its own
models.py         step by step to a model that serves; slots.py remembers which does,
                  crash_guard.py whether the agent survives it
commands.py       evidence, test alarm, self-test, a model taken or given back
"""
