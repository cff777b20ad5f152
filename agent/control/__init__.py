"""What may be changed from afar: signed envelopes, and what is done with them.

strict_json.py  JSON from strangers, bounded before it is parsed
envelope.py     who says what to whom, until when: sealed, unsealed, admitted
keys.py         Ed25519: what signs and what is trusted
inbox.py        from the link's thread to the main one, bounded
remote.py       which tunables rule: on trial, kept, rolled back, refused
overlay.py      a change laid over the file, judged as a whole
probation.py    whether the triggers stay sane
store.py        what was accepted, on disk in two slots
client.py       the operator's side; rehearsal.py what a change would have made of recorded data

model_order.py  a bundle, named by the hashes of its pieces; download.py fetches them
trial.py        the bundle in a process of its own
model_updates.py  step by step to a model that serves; selection.py remembers which does
commands.py     evidence, test alarm, self-test
model_client.py the operator's side of both
"""
