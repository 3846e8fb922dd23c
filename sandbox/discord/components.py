"""Message components and modals: Discord's rules for what a bot sends, and the form in which Discord gives it back."""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

from sandbox.discord.errors import Json
from sandbox.discord.form import Form

ROW, BUTTON, STRING_SELECT, TEXT_INPUT = 1, 2, 3, 4
USER_SELECT, ROLE_SELECT, MENTIONABLE_SELECT, CHANNEL_SELECT = 5, 6, 7, 8
SECTION, TEXT, THUMBNAIL, GALLERY, FILE, SEPARATOR, CONTAINER = 9, 10, 11, 12, 13, 14, 17
LABEL, FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX = 18, 19, 21, 22, 23

SELECTS = {STRING_SELECT, USER_SELECT, ROLE_SELECT, MENTIONABLE_SELECT, CHANNEL_SELECT}
INPUTS = SELECTS | {TEXT_INPUT, FILE_UPLOAD, RADIO_GROUP, CHECKBOX_GROUP, CHECKBOX}
IN_CONTAINER = {ROW, SECTION, TEXT, GALLERY, FILE, SEPARATOR}
AT_TOP_V2 = IN_CONTAINER | {CONTAINER}

MAX_COMPONENTS, MAX_TEXT = 40, 4000
BUTTON_LINK, BUTTON_PREMIUM = 5, 6
MODAL_MAX_ROWS_V1 = 5
# Keys that hold other components or media; the rest of a component is returned as it came.
NESTED = ("components", "accessory", "component", "items", "media", "file")


@dataclass(frozen=True)
class Setting:
    """Where components stand: a modal, or a message with the files that `attachment://` may name.

    `missing` is the code of a reference to any other file; public reports tell the one of edits.
    """

    files: Set[str] = frozenset()
    edit: bool = False
    modal: bool = False

    @property
    def missing(self) -> str:
        return f"{'UNFURLED_MEDIA_ITEM' if self.edit else 'COMPONENT'}_REFERENCED_ATTACHMENT_NOT_FOUND"


def children(component: Json) -> Iterator[Json]:
    """The components directly inside one, in the order a reader meets them."""
    yield from component.get("components") or []
    for key in ("accessory", "component"):
        if isinstance(component.get(key), dict):
            yield component[key]


def walk(components: Iterable[Json]) -> Iterator[Json]:
    for component in components:
        yield component
        yield from walk(children(component))


def texts(components: Iterable[Json]) -> list[str]:
    """The text displays of a message, in reading order."""
    return [component["content"] for component in walk(components) if component.get("type") == TEXT]


def media(component: Json) -> list[Json]:
    """The media slots of one component, each an object with `url`."""
    if component["type"] == GALLERY:
        return [item["media"] for item in component["items"]]
    if component["type"] == THUMBNAIL:
        return [component["media"]]
    return [component["file"]] if component["type"] == FILE else []


def check_message(form: Form, components: list[Any], setting: Setting, *, v2: bool) -> None:
    """Faults of a message's components."""
    for index, component in enumerate(components):
        _check(form.at(index), component, AT_TOP_V2 if v2 else {ROW}, setting)
    if form.faults:
        return
    if not v2 and len(components) > 5:
        form.fault("BASE_TYPE_BAD_LENGTH", "Must be between 1 and 5 in length.")
    _check_whole(form, components)
    if sum(map(len, texts(components))) > MAX_TEXT:
        form.fault(
            "COMPONENT_DISPLAYABLE_TEXT_SIZE_EXCEEDED",
            f"The total displayable text size exceeds the maximum of {MAX_TEXT}.",
        )


def _check_whole(form: Form, components: list[Json]) -> None:
    everything = list(walk(components))
    if len(everything) > MAX_COMPONENTS:
        form.fault("COMPONENT_MAX_TOTAL_COMPONENTS_EXCEEDED", f"The message has over {MAX_COMPONENTS} components.")
    custom_ids = [component["custom_id"] for component in everything if component.get("custom_id")]
    if len(set(custom_ids)) < len(custom_ids):
        form.fault("COMPONENT_CUSTOM_ID_DUPLICATED", "Component custom id cannot be duplicated")
    ids = [component["id"] for component in everything if component.get("id")]
    if len(set(ids)) < len(ids):
        form.fault("COMPONENT_ID_DUPLICATED", "Component id cannot be duplicated")


def _check(form: Form, component: Any, allowed: set[int], setting: Setting) -> None:
    if not isinstance(component, dict):
        form.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
        return
    kind = form.choice(component, "type", allowed, required=True)
    if kind is None:
        return
    _check_id(form, component)
    match kind:
        case 1:
            _check_row(form, component, setting)
        case 2:
            _check_button(form, component)
        case 9:
            for index, part in enumerate(form.items(component, "components", 1, 3, required=True)):
                _check(form.at("components", index), part, {TEXT}, setting)
            _check(form.at("accessory"), component.get("accessory"), {BUTTON, THUMBNAIL}, setting)
        case 10:
            text = form.text(component, "content", 1, MAX_TEXT, required=True)
            if text is not None and not text.strip():
                form.at("content").fault("BASE_TYPE_REQUIRED", "This field is required")
        case 11:
            form.text(component, "description", 1, 1024)
            _check_media(form.at("media"), component.get("media"), setting)
        case 12:
            for index, item in enumerate(form.items(component, "items", 1, 10, required=True)):
                form.at("items", index).text(item, "description", 1, 1024)
                if isinstance(item, dict):
                    _check_media(form.at("items", index, "media"), item.get("media"), setting)
        case 13:
            _check_media(form.at("file"), component.get("file"), setting, own_only=True)
        case 14:
            form.choice(component, "spacing", {1, 2})
        case 17:
            form.integer(component, "accent_color", 0, 0xFFFFFF)
            for index, part in enumerate(form.items(component, "components", 1, MAX_COMPONENTS, required=True)):
                _check(form.at("components", index), part, IN_CONTAINER, setting)
        case _:
            _check_input(form, component, setting)


def _check_id(form: Form, component: Json) -> None:
    if isinstance(component.get("id"), str):
        form.at("id").fault("NUMBER_TYPE_COERCE", f'Value "{component["id"]}" is not int.')
    else:
        form.integer(component, "id", 0, 2**31 - 1)


def _check_row(form: Form, row: Json, setting: Setting) -> None:
    parts = form.items(row, "components", 1, 5, required=True)
    for index, part in enumerate(parts):
        _check(form.at("components", index), part, {BUTTON} | SELECTS, setting)
    if len(parts) > 1 and any(isinstance(part, dict) and part.get("type") in SELECTS for part in parts):
        form.at("components").fault(
            "COMPONENT_LAYOUT_WIDTH_EXCEEDED", "The specified component exceeds the maximum width"
        )


def _check_button(form: Form, button: Json) -> None:
    style = form.choice(button, "style", range(1, 7), required=True)
    form.text(button, "label", 0, 80)
    if style == BUTTON_LINK:
        form.text(button, "url", 1, 512, required=True)
        if button.get("custom_id"):
            form.at("custom_id").fault("BUTTON_COMPONENT_CUSTOM_ID_URL_MUTUALLY_EXCLUSIVE", "A link has no custom id")
    elif style == BUTTON_PREMIUM:
        for key in ("custom_id", "label", "url", "emoji"):
            if button.get(key):
                form.at(key).fault("BUTTON_COMPONENT_INVALID", f"A premium button has no {key}")
        if not button.get("sku_id"):
            form.at("sku_id").fault("BASE_TYPE_REQUIRED", "This field is required")
    else:
        form.text(button, "custom_id", 1, 100, required=True)
        if button.get("url"):
            form.at("url").fault("BUTTON_COMPONENT_CUSTOM_ID_URL_MUTUALLY_EXCLUSIVE", "Only a link button has a url")
    if style != BUTTON_PREMIUM and button.get("sku_id"):
        form.at("sku_id").fault("BUTTON_COMPONENT_INVALID", "Only a premium button has a sku_id")
    if not (button.get("label") or button.get("emoji") or button.get("sku_id")):
        form.fault("BUTTON_COMPONENT_INVALID", "A button must have a label, emoji or sku_id")


def _check_media(form: Form, slot: Any, setting: Setting, *, own_only: bool = False) -> None:
    if not isinstance(slot, dict):
        form.fault("BASE_TYPE_REQUIRED", "This field is required")
        return
    url = form.text(slot, "url", 1, 2048, required=True)
    if url is None:
        return
    if url.startswith("attachment://"):
        if url.removeprefix("attachment://") not in setting.files:
            form.at("url").fault(setting.missing, f"The referenced attachment {url} was not found")
    elif own_only or not url.startswith(("http://", "https://")):
        form.at("url").fault("URL_TYPE_INVALID_SCHEME", "Scheme must be one of (http, https, attachment).")


def _check_input(form: Form, component: Json, setting: Setting) -> None:
    """A select, text input or another component that a person fills in."""
    kind = component["type"]
    form.text(component, "custom_id", 1, 100, required=True)
    if kind == TEXT_INPUT:
        form.choice(component, "style", {1, 2}, required=True)
        form.text(component, "placeholder", 0, 100)
        low = form.integer(component, "min_length", 0, 4000) or 0
        high = form.integer(component, "max_length", 1, 4000) or 4000
        if low > high:
            form.at("min_length").fault("TEXT_INPUT_MIN_MAX", "min_length must not be over max_length")
        form.text(component, "value", 0, high)
        return
    if kind == CHECKBOX:
        return
    most = 25 if kind in SELECTS else 10
    form.text(component, "placeholder", 0, 150)
    if setting.modal and component.get("disabled"):
        form.at("disabled").fault("COMPONENT_INVALID", "A component of a modal cannot be disabled")
    if kind != RADIO_GROUP:
        _check_counts(form, component, most, modal=setting.modal)
    if kind not in (STRING_SELECT, RADIO_GROUP, CHECKBOX_GROUP):
        return
    options = form.items(component, "options", 2 if kind == RADIO_GROUP else 1, most, required=True)
    seen: set[str] = set()
    for index, option in enumerate(options):
        here = form.at("options", index)
        here.text(option, "label", 1, 100, required=True)
        value = here.text(option, "value", 1, 100, required=True)
        here.text(option, "description", 0, 100)
        if value in seen:
            here.at("value").fault(
                "SELECT_COMPONENT_OPTION_VALUE_DUPLICATED", "The specified option value is already used"
            )
        seen.add(value or "")
    most_chosen = component.get("max_values")
    if options and isinstance(most_chosen, int) and most_chosen > len(options):
        form.at("max_values").fault("BASE_TYPE_BAD_LENGTH", "max_values is over the number of options")


def _check_counts(form: Form, component: Json, most: int, *, modal: bool) -> None:
    """How many can be chosen: `min_values` is at most `max_values`, and not 0 where a modal requires an answer."""
    low = form.integer(component, "min_values", 0, most)
    high = form.integer(component, "max_values", 1, most)
    if high is None:
        # Selects and uploads take one where they do not say; a group of checkboxes takes all.
        options = component.get("options")
        high = len(options) if component["type"] == CHECKBOX_GROUP and isinstance(options, list) else 1
    least = 1 if low is None else low
    if least > high:
        form.at("min_values").fault("SELECT_COMPONENT_MIN_VALUES_TOO_LARGE", "min_values must not be over max_values")
    if modal and low == 0 and component.get("required") is not False:
        form.at("min_values").fault("NUMBER_TYPE_MIN", "int value should be greater than or equal to 1.")
    defaults = form.items(component, "default_values", 0, 25)
    if defaults and not least <= len(defaults) <= high:
        form.at("default_values").fault("BASE_TYPE_BAD_LENGTH", f"Must be between {least} and {high} in length.")


def check_modal(form: Form, modal: Any) -> None:
    """Faults of the data of a modal answer."""
    if not isinstance(modal, dict):
        form.fault("BASE_TYPE_REQUIRED", "This field is required")
        return
    form.text(modal, "custom_id", 1, 100, required=True)
    form.text(modal, "title", 1, 45, required=True)
    parts = form.items(modal, "components", 1, MODAL_MAX_ROWS_V1, required=True)
    for index, part in enumerate(parts):
        here = form.at("components", index)
        if not isinstance(part, dict) or here.choice(part, "type", {ROW, TEXT, LABEL}, required=True) is None:
            continue
        _check_id(here, part)
        if part["type"] == TEXT:
            here.text(part, "content", 1, MAX_TEXT, required=True)
        elif part["type"] == ROW:
            for number, inner in enumerate(here.items(part, "components", 1, 1, required=True)):
                place = here.at("components", number)
                place.text(inner, "label", 1, 45, required=True)
                _check(place, inner, {TEXT_INPUT}, Setting(modal=True))
        else:
            here.text(part, "label", 1, 45, required=True)
            here.text(part, "description", 1, 100)
            _check(here.at("component"), part.get("component"), INPUTS, Setting(modal=True))
    if not form.faults:
        _check_whole(form, parts)


def resolve(components: list[Json], attachments: list[Json]) -> list[Json]:
    """Components as Discord returns them: every one with an id, defaults filled in, media with its real address."""
    taken = {component["id"] for component in walk(components) if component.get("id")}
    free = (number for number in range(1, 10_000) if number not in taken)
    by_name = {attachment["filename"]: attachment for attachment in attachments}

    def resolved(component: Json) -> Json:
        kind = component["type"]
        out: Json = {"type": kind, "id": component.get("id") or next(free)}
        out |= {key: value for key, value in component.items() if key not in (*NESTED, "id") and value is not None}
        if kind in SELECTS:
            out |= {"min_values": component.get("min_values", 1), "max_values": component.get("max_values", 1)}
        if kind in (CONTAINER, FILE, THUMBNAIL):
            out["spoiler"] = bool(component.get("spoiler"))
        if kind == CONTAINER:
            out["accent_color"] = component.get("accent_color")
        if kind == SEPARATOR:
            out |= {"spacing": component.get("spacing") or 1, "divider": component.get("divider") is not False}
        if kind == GALLERY:
            out["items"] = [
                {
                    "media": _unfurl(item["media"], by_name, out["id"]),
                    "description": item.get("description"),
                    "spoiler": bool(item.get("spoiler")),
                }
                for item in component["items"]
            ]
        if kind == THUMBNAIL:
            out |= {
                "media": _unfurl(component["media"], by_name, out["id"]),
                "description": component.get("description"),
            }
        if kind == FILE:
            shown = by_name.get(component["file"]["url"].rpartition("/")[2], {})
            out["file"] = _unfurl(component["file"], by_name, out["id"])
            out |= {"name": shown.get("filename"), "size": shown.get("size")}
        if "components" in component:
            out["components"] = [resolved(part) for part in component["components"]]
        for key in ("accessory", "component"):
            if component.get(key):
                out[key] = resolved(component[key])
        return out

    return [resolved(component) for component in components]


def _unfurl(slot: Json, by_name: dict[str, Json], number: int) -> Json:
    url = slot["url"]
    name = url.removeprefix("attachment://")
    attachment = by_name.get(name) if name != url else next((a for a in by_name.values() if a["url"] == url), None)
    if attachment is None:
        return {"id": str(number), "url": url, "proxy_url": url, "width": 0, "height": 0, "content_type": None}
    return {
        "id": attachment["id"],
        "attachment_id": attachment["id"],
        "url": attachment["url"],
        "proxy_url": attachment["proxy_url"],
        "width": attachment.get("width"),
        "height": attachment.get("height"),
        "content_type": attachment.get("content_type"),
    }
