"""The kinds of run: each is a module, named as in `RunKind`, with its `KIND`."""
