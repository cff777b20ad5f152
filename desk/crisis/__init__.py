"""``talus simulate --scenario crisis``: days of a slope that fails, with faults, and a scorecard.

    plan.py      what happens and when, from a seed: events, faults of the recorder, and strikes against the station
    broker.py    a Mosquitto of its own, the link to it that can be cut, and who listens
    station.py   the station in a process of its own, which can be killed; fed a minute of data at a time
    run.py       conducts: feeds, strikes, waits
    card.py      what was planted against what arrived: the scorecard

Time is that of the data. The station has decided on all that it was given before a strike begins, so that the same seed
gives the same score on any machine.
"""
