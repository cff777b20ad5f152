"""From sample blocks to events, by the time of the data: no clock, no I/O, no threads."""
