"""What may be changed from afar: signed envelopes, and what is done with them.

strict_json.py  JSON from strangers, bounded before it is parsed
envelope.py     who says what to whom, until when: sealed, unsealed, admitted
keys.py         Ed25519: what signs and what is trusted
inbox.py        from the link's thread to the main one, bounded
durable.py      files of which a power cut leaves the old one or the new one

remote.py       which tunables rule: on trial, kept, rolled back, refused
overlay.py      a change laid over the file, judged as a whole
probation.py    whether the triggers stay sane
store.py        what was accepted, on disk in two slots
rehearsal.py    what a change would have made of recorded data

model_order.py  a bundle, named by the hashes of its pieces; download.py fetches them
trial.py        the bundle in a process of its own
model_updates.py  step by step to a model that serves; selection.py remembers which does,
                    survival.py whether the agent lives with it
commands.py     evidence, test alarm, self-test, a model taken or given back

listening.py    the operator's side: a connection that hears one station
client.py       changes of the configuration pushed and looked at
model_client.py the same for models; commands, and their answers
"""
