"""The health of the station: what is measured, and who is told."""
