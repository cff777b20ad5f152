"""Calling people: whom, when, by which way, and until someone has answered."""
