"""Commands of ``talus`` whose home is this package."""
