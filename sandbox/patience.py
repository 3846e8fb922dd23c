"""How long one waits for what is to come: a net, far above what it takes on a slow machine."""

import os

PATIENCE = 1200.0 if os.environ.get("STOA_TEST_SLOW") else 300.0
"""Seconds after which a wait is given up."""
