"""Networks, and how each of them is trained."""
