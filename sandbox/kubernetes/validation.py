"""What the API server refuses of a new object: 400 where it cannot be read, 422 with the fields where it is wrong."""

import base64
import re
from collections.abc import Iterator

from sandbox.kubernetes import errors
from sandbox.kubernetes.errors import Json
from sandbox.kubernetes.objects import JOBS, SECRETS, SERVICES, ResourceType

Causes = list[tuple[str, str, str]]

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]|")
QUANTITY = re.compile(r"[+-]?[0-9.]+([eEinumkKMGTP]*[-+]?[0-9]*)")
MOST_SECRET = 2**20
NAME_RULE = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character"
)
IMMUTABLE = ("template", "selector", "completionMode")


def check_new(kind: ResourceType, body: Json) -> None:
    """Raise ApiError for an object that may not be created."""
    if body.get("kind", kind.kind) != kind.kind or body.get("apiVersion", kind.api_version) != kind.api_version:
        raise errors.bad_request(
            f"{body.get('kind')} in version {body.get('apiVersion')!r} cannot be handled as a {kind.kind}"
        )
    metadata = body.get("metadata") or {}
    name = metadata.get("name") or ""
    causes = list(_metadata(metadata, kind))
    if kind is JOBS:
        causes += _job(body.get("spec") or {}, name)
    elif kind is SECRETS:
        causes += _secret(body)
    elif kind is SERVICES and not (body.get("spec") or {}).get("ports") and _cluster_ip(body) != "None":
        causes.append(("spec.ports", "FieldValueRequired", "Required value"))
    if causes:
        raise errors.invalid(kind.kind, kind.group, name, causes)


def check_change(kind: ResourceType, before: Json, after: Json) -> None:
    """Raise ApiError for a change of what may not change."""
    name = before["metadata"]["name"]
    causes: Causes = []
    if kind is JOBS:
        for field in IMMUTABLE:
            if before["spec"].get(field) != after["spec"].get(field):
                causes.append((f"spec.{field}", "FieldValueInvalid", "Invalid value: field is immutable"))
    if kind is SECRETS:
        causes += _secret(after)
        for field in ("immutable", "data", "type"):
            if (before.get("immutable") or field == "type") and before.get(field) != after.get(field):
                message = "field is immutable when `immutable` is set" if field != "type" else "field is immutable"
                causes.append((field, "FieldValueForbidden", f"Forbidden: {message}"))
    for field in ("name", "namespace", "uid"):
        if before["metadata"].get(field) != after["metadata"].get(field):
            causes.append((f"metadata.{field}", "FieldValueInvalid", "Invalid value: field is immutable"))
    causes += _metadata(after["metadata"], kind)
    if causes:
        raise errors.invalid(kind.kind, kind.group, name, causes)


def _metadata(metadata: Json, kind: ResourceType) -> Iterator[tuple[str, str, str]]:
    name = metadata.get("name") or ""
    if not name and not metadata.get("generateName"):
        yield "metadata.name", "FieldValueRequired", "Required value: name or generateName is required"
    elif name and kind in (JOBS, SERVICES) and (len(name) > 63 or not LABEL.fullmatch(name)):
        yield "metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": {NAME_RULE}'
    yield from _labels(metadata.get("labels") or {}, "metadata.labels")


def _labels(labels: Json, field: str) -> Iterator[tuple[str, str, str]]:
    for value in labels.values():
        if not isinstance(value, str):
            raise errors.bad_request("json: cannot unmarshal number into Go struct field ObjectMeta.labels of string")
        if len(value) > 63 or not VALUE.fullmatch(value):
            said = f'Invalid value: "{value}": a valid label must be an empty string or consist of at most 63 ...'
            yield field, "FieldValueInvalid", said


def _secret(body: Json) -> Iterator[tuple[str, str, str]]:
    size = sum(len(value.encode()) for value in (body.get("stringData") or {}).values())
    for name, value in (body.get("data") or {}).items():
        try:
            size += len(base64.b64decode(value, validate=True))
        except (TypeError, ValueError):
            raise errors.bad_request("illegal base64 data at input byte 0") from None
        if not re.fullmatch(r"[-._a-zA-Z0-9]{1,253}", name):
            message = f'Invalid value: "{name}": a valid config key must consist of alphanumeric characters, "-", ...'
            yield f"data[{name}]", "FieldValueInvalid", message
    if size > MOST_SECRET:
        yield "data", "FieldValueTooLong", f"Too long: may not be more than {MOST_SECRET} bytes"


def _job(spec: Json, name: str) -> Iterator[tuple[str, str, str]]:
    for field in ("parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"):
        value = spec.get(field)
        if value is not None and value < 0:
            message = f"Invalid value: {value}: must be greater than or equal to 0"
            yield f"spec.{field}", "FieldValueInvalid", message
    mode = spec.get("completionMode", "NonIndexed")
    if mode not in ("Indexed", "NonIndexed"):
        yield "spec.completionMode", "FieldValueNotSupported", f'Unsupported value: "{mode}"'
    if mode == "Indexed" and spec.get("completions") is None:
        message = "Required value: when completion mode is Indexed"
        yield "spec.completions", "FieldValueRequired", message
    if mode == "Indexed" and len(f"{name}-{(spec.get('completions') or 1) - 1}") > 63:
        yield "metadata.name", "FieldValueInvalid", f'Invalid value: "{name}": will not able to create pod with name'
    if spec.get("podReplacementPolicy", "Failed") not in ("Failed", "TerminatingOrFailed"):
        message = f'Unsupported value: "{spec["podReplacementPolicy"]}"'
        yield "spec.podReplacementPolicy", "FieldValueNotSupported", message
    template = spec.get("template") or {}
    yield from _labels((template.get("metadata") or {}).get("labels") or {}, "spec.template.labels")
    yield from _pod(template.get("spec") or {}, "spec.template.spec")


def _pod(spec: Json, field: str) -> Iterator[tuple[str, str, str]]:
    policy = spec.get("restartPolicy", "Always")
    if policy not in ("Never", "OnFailure"):
        message = f'Required value: valid values: "OnFailure", "Never", not "{policy}"'
        yield f"{field}.restartPolicy", "FieldValueRequired", message
    if not spec.get("containers"):
        yield f"{field}.containers", "FieldValueRequired", "Required value"
    volumes = {volume.get("name") for volume in spec.get("volumes") or []}
    for number, container in enumerate(spec.get("containers") or []):
        where = f"{field}.containers[{number}]"
        if not container.get("name"):
            yield f"{where}.name", "FieldValueRequired", "Required value"
        if not container.get("image"):
            yield f"{where}.image", "FieldValueRequired", "Required value"
        for mount, told in enumerate(container.get("volumeMounts") or []):
            if told.get("name") not in volumes:
                message = f'Not found: "{told.get("name")}"'
                yield f"{where}.volumeMounts[{mount}].name", "FieldValueNotFound", message
        yield from _resources(container.get("resources") or {}, f"{where}.resources")


def _resources(resources: Json, field: str) -> Iterator[tuple[str, str, str]]:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for value in (*limits.values(), *requests.values()):
        if not QUANTITY.fullmatch(str(value)):
            raise errors.bad_request(
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
            )
    for name in {*limits, *requests}:
        if "/" in name and name not in limits:
            message = "Required value: Limit must be set for non overcommitable resources"
            yield f"{field}.limits", "FieldValueRequired", message
        elif "/" in name and requests.get(name, limits[name]) != limits[name]:
            message = f'Invalid value: "{requests[name]}": must be equal to {name} limit of {limits[name]}'
            yield f"{field}.requests", "FieldValueInvalid", message


def _cluster_ip(body: Json) -> str:
    return str((body.get("spec") or {}).get("clusterIP", ""))
