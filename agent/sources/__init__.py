"""Where samples come from; one file a source, imported only when chosen."""
