"""What may be changed from afar: signed envelopes, and what is done with them.

strict_json.py  JSON from strangers, bounded before it is parsed
envelope.py     who says what to whom, until when: sealed, unsealed, admitted
keys.py         Ed25519: what signs and what is trusted
inbox.py        messages on their way to who judges them
store.py        what was accepted, on disk in two slots
remote.py       the tunables; probation.py what they may not do

model_order.py  a bundle, named by the hashes of its pieces; download.py fetches them
trial.py        the bundle in a process of its own
model_updates.py  step by step to a model that serves; selection.py remembers which does
commands.py     evidence, test alarm, self-test
"""
