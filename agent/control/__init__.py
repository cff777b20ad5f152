"""What may be changed from afar: signed envelopes, and what is done with them.

strict_json.py  JSON from strangers, bounded before it is parsed
envelope.py     who says what to whom, until when: sealed, unsealed, admitted
keys.py         Ed25519: what signs and what is trusted
"""
