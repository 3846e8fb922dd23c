"""How every part writes its log: lines with time and level, and tracebacks without local variables."""

import structlog


def configure() -> None:
    """Set structlog up. Local variables stay out of tracebacks, since those of the HTTP clients hold tokens."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(processors=[structlog.processors.add_log_level, stamp, renderer])
