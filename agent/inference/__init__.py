"""From a window to a verdict; one file a backend, imported only when chosen."""
