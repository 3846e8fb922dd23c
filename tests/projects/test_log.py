"""What is logged has no signature of an upload and no password in it, whoever logs it."""

import logging
import subprocess
import sys

import pytest

from projects import log
from projects.log import without_secrets
from tests.environment import bare

SIGNED = "https://s3.example.com/lfs/ab/cd?X-Amz-Signature=5ec4e7&X-Amz-Credential=AKIA"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (f"PUT {SIGNED} 200", "PUT https://s3.example.com/lfs/ab/cd 200"),
        (f"('{SIGNED}')", "('https://s3.example.com/lfs/ab/cd')"),
        (f'<Request "{SIGNED}">', '<Request "https://s3.example.com/lfs/ab/cd">'),
        ("postgresql+psycopg://stoa:5ec4e7@db:5432/stoa", "postgresql+psycopg://db:5432/stoa"),
        ("redis://:5ec4e7@queue/0", "redis://queue/0"),
        ("is it so? yes: a?b", "is it so? yes: a?b"),
    ],
)
def test_addresses_lose_query_and_password(said: str, kept: str) -> None:
    assert without_secrets(said) == kept


def test_no_library_and_no_traceback_logs_them() -> None:
    code = f"""
import logging, structlog
from projects import log
log.configure()
logging.basicConfig(level="DEBUG")
url = {SIGNED!r}
logging.getLogger("httpx2").info('HTTP Request: %s %s "%s"', "PUT", url, "200 OK")
logging.getLogger("urllib3").debug("Starting %r", {{"url": url}})
try:
    raise RuntimeError("403 for " + url)
except RuntimeError:
    logging.getLogger("celery").exception("the task raised at %s", url)
    structlog.get_logger().error("not published", error=url, exc_info=True)
"""
    done = subprocess.run([sys.executable, "-c", code], env=bare(), capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    assert "5ec4e7" not in said
    assert said.count("https://s3.example.com/lfs/ab/cd") >= 6
    assert "RuntimeError: 403 for" in done.stdout
    assert "RuntimeError: 403 for" in done.stderr


def test_a_line_whose_arguments_do_not_fit_is_left_to_its_handler() -> None:
    assert logging.getLogRecordFactory()("a", 1, "f", 1, "%s %s", ("one",), None).msg == "%s %s"


def test_each_trouble_is_logged_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    seldom = log.Seldom()
    assert [seldom.is_due(about) for about in ("a run", "a pool", "a run", "a pool")] == [True, True, False, False]
    monkeypatch.setattr(log, "AGAIN_SECONDS", 0.0)
    assert seldom.is_due("a run")
