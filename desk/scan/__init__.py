"""A station's own judgement on an archive: what happened, and in which hours it could have been heard.

units.py       what is judged on its own: a sensor's UTC day, read from before midnight to after the next
index.py       which files hold which sensors and times
reading.py     the pieces of files that a unit reads, and the hash of their bytes
judge.py       one unit, from its bytes to its result
result.py      what a unit ends in, one file each
ledger.py      hours of samples, gaps, hours armed
folder.py      the folder of a scan: what is done, what is to do
engines.py     processes, Dask
catalogue.py   all results together: CSV, Parquet, QuakeML
compare.py     a catalogue against what is known
"""
