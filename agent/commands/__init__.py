"""The subcommands of ``talus``, one file each."""
