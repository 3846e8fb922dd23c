"""The log of every process: lines with time and level, and tracebacks without local variables."""

import structlog


def configure() -> None:
    """Configure structlog. Tracebacks show no local variables, since those of the HTTP clients hold tokens."""
    renderer = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    structlog.configure(processors=[structlog.processors.add_log_level, stamp, renderer])
