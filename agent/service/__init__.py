"""The service: it starts, stops and connects the stages, and decides nothing."""
