"""The remote configuration, models and commands of a station: signed orders, and what is done with them.

gate.py           the one way in: an envelope, its signature (desk/push/signing.py makes it), every check, the disk
configuration.py  which tunables are active: on trial, kept, rolled back, refused
trigger_watch.py  whether the triggers stay sane, and what a change would have made of recorded events
models.py         takes a bundle step by step to a model that serves: model_order.py names and fetches it,
                  trial.py opens it in a process of its own, slots.py remembers which one serves
commands.py       evidence, test alarm, self-test, a model taken or given back
"""
