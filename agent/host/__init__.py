"""The machine that the agent runs on: its clock, its memory and temperatures, its certificates."""
