"""Errors as Discord's REST API words them: status, numeric code, message and, for forms, a tree of faults."""

from typing import Any

Json = dict[str, Any]

# Code: (HTTP status, message), from Discord's table of JSON error codes.
KNOWN: dict[int, tuple[int, str]] = {
    10003: (404, "Unknown Channel"),
    10004: (404, "Unknown Guild"),
    10007: (404, "Unknown Member"),
    10008: (404, "Unknown Message"),
    10011: (404, "Unknown Role"),
    10013: (404, "Unknown User"),
    10015: (404, "Unknown Webhook"),
    10060: (404, "Unknown Sticker"),
    10062: (404, "Unknown interaction"),
    10063: (404, "Unknown application command"),
    30003: (400, "Maximum number of pins reached for the channel (250)"),
    30005: (400, "Maximum number of guild roles reached (250)"),
    30013: (400, "Maximum number of guild channels reached (500)"),
    30032: (400, "Maximum number of application commands reached (100)"),
    30039: (400, "Maximum number of stickers reached (5)"),
    30046: (429, "Maximum number of edits to messages older than 1 hour reached. Try again later."),
    40005: (413, "Request entity too large"),
    40060: (400, "Interaction has already been acknowledged."),
    50001: (403, "Missing Access"),
    50005: (403, "Cannot edit a message authored by another user"),
    50006: (400, "Cannot send an empty message"),
    50013: (403, "Missing Permissions"),
    50024: (400, "Cannot execute action on this channel type"),
    50027: (401, "Invalid Webhook Token"),
    50028: (400, "Invalid Role"),
    50035: (400, "Invalid Form Body"),
    50045: (400, "File uploaded exceeds the maximum size"),
    50046: (400, "Invalid file uploaded"),
    50081: (400, "Invalid sticker sent"),
    50083: (400, "Thread is archived"),
    50109: (400, "The request body contains invalid JSON."),
    160004: (400, "A thread has already been created for this message"),
    160006: (400, "Maximum number of active threads reached"),
}


class ApiError(Exception):
    """A refusal by the API. `errors` is the tree of form faults that goes with code 50035."""

    def __init__(self, code: int, errors: Json | None = None, *, status: int | None = None, message: str = "") -> None:
        known_status, known_message = KNOWN.get(code, (400, "Bad Request"))
        self.status = status or known_status
        self.body: Json = {"message": message or known_message, "code": code}
        if errors:
            self.body["errors"] = errors
        super().__init__(f"{self.status} {code}: {self.body['message']}")


def bare(status: int, reason: str) -> ApiError:
    """An error that carries no code of Discord's own, such as `404: Not Found`."""
    return ApiError(0, status=status, message=f"{status}: {reason}")
