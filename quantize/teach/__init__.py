"""``talus teach``: the last layer of a shipped network, fitted to a site's own labels. No torch, no SciPy."""
