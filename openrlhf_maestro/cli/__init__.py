"""The `maestro` command: one thin module a command, whose heavy imports happen after the command line is understood."""
