"""The operator's subcommands of ``talus``, one file each."""
