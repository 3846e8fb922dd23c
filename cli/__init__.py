"""The command line, `stoa`: the parts of a running Stoa, and what operators decide."""
