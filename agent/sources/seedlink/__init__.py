"""SeedLink, versions 3 and 4: from servers' packets to sample blocks."""
