"""Refusals as Kubernetes gives them: `Status` objects."""

from typing import Any

Json = dict[str, Any]


class ApiError(Exception):
    """A refusal: its HTTP status, its reason in Kubernetes' word, and a sentence."""

    def __init__(self, code: int, reason: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details or {}

    def body(self) -> Json:
        """The refusal as a `Status` object."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def not_found(plural: str, group: str, name: str) -> ApiError:
    resource = f"{plural}.{group}" if group else plural
    return ApiError(404, "NotFound", f'{resource} "{name}" not found', _details(plural, group, name))


def already_exists(plural: str, group: str, name: str) -> ApiError:
    resource = f"{plural}.{group}" if group else plural
    return ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists', _details(plural, group, name))


def conflict(plural: str, group: str, name: str, why: str) -> ApiError:
    resource = f"{plural}.{group}" if group else plural
    message = f'Operation cannot be fulfilled on {resource} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(plural, group, name))


def forbidden(verb: str, plural: str, group: str, namespace: str) -> ApiError:
    message = (
        f'{plural}{f".{group}" if group else ""} is forbidden: User "stoa" cannot {verb} resource "{plural}" '
        f'in API group "{group}" in the namespace "{namespace}"'
    )
    return ApiError(403, "Forbidden", message, _details(plural, group, ""))


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> ApiError:
    return ApiError(410, "Expired", message)


def invalid(kind: str, group: str, name: str, causes: list[tuple[str, str, str]]) -> ApiError:
    """A 422 with its causes: field, reason, and what is wrong there."""
    said = [f"{field}: {message}" for field, _, message in causes]
    message = f'{kind}{f".{group}" if group else ""} "{name}" is invalid: '
    message += said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    listed = [{"reason": reason, "message": message, "field": field} for field, reason, message in causes]
    return ApiError(422, "Invalid", message, {"name": name, "group": group, "kind": kind, "causes": listed})


def _details(plural: str, group: str, name: str) -> Json:
    return {"name": name, **({"group": group} if group else {}), "kind": plural}
