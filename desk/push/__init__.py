"""Signed changes on their way to a station: configuration, models, commands."""
