"""What of a text can be seen: terminal codes, control characters and characters that render as nothing are left out.

Texts are cleaned before they are checked, so that no check is passed by a character that disappears afterwards.
"""

import re
import unicodedata

ESC = "\x1b"
# The 8-bit forms of a terminal's introducers: C1 controls, and how `surrogateescape` decodes their lone bytes.
_CSI = rf"(?:{ESC}\[|[\x9b\udc9b])"
_STRING = rf"(?:{ESC}[\]PX^_]|[\x90\x98\x9d\x9e\x9f\udc90\udc98\udc9d\udc9e\udc9f])"
_STRING_END = rf"(?:\x07|{ESC}\\|[\x9c\udc9c])"
_TERMINAL = re.compile(
    rf"{_CSI}[0-?]*[ -/]*[@-~]?"  # colours, cursor moves, erasing
    rf"|{_STRING}[^\x07\x1b\x9c\udc9c\n]*{_STRING_END}?"  # titles, links and the like, with their texts
    rf"|{ESC}[ -/]*[0-~]?"  # character sets, and all shorter sequences
    r"|[\udc80-\udc9f]"  # lone bytes of other C1 controls
)
_SPACES = str.maketrans(
    {"\r": "\n", "\t": " ", "\v": "\n", "\f": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n", "\u2800": " "}
)
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# Letters and marks that render as nothing, though their category does not say so: fillers and variation selectors.
_UNSEEN = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\U00016fe4\U0001d159"
    + "".join(map(chr, [*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]))
)
_ZWNJ, _ZWJ = "\u200c", "\u200d"
_TEXT_STYLE, _EMOJI_STYLE, _KEYCAP = "\ufe0e", "\ufe0f", "\u20e3"
_EMOJI_OF_OTHER_CATEGORIES = frozenset("‼⁉ℹ〰")
# The flags of England and the like: a black flag, then letters as tags, then the tag that ends them.
_FLAG = re.compile("\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,8}\U000e007f")
_VIRAMA = 9


def cleaned(value: str) -> str:
    """`value` without what cannot be seen, and without space around it; line ends stay."""
    return visible(value).strip()


def visible(value: str) -> str:
    """`value` without what cannot be seen; spaces and line ends stay.

    Joiners and variation selectors stay only where a script or an emoji is written with them.
    """
    if value.isascii() and value.isprintable():
        return value
    text = without_terminal_codes(value).replace("\r\n", "\n").translate(_SPACES)
    tags = {at for flag in _FLAG.finditer(text) for at in range(*flag.span())}
    kept: list[str] = []
    for at, char in enumerate(text):
        after = text[at + 1] if at + 1 < len(text) else ""
        if at in tags or _is_seen(kept, char, after):
            kept.append(char)
    return "".join(kept)


def without_terminal_codes(value: str) -> str:
    """`value` without the sequences by which a terminal is told of colours, links, cursor moves and the like.

    Lone bytes that stand for such controls are taken as them, where `value` was decoded with `surrogateescape`.
    """
    return _TERMINAL.sub("", value.replace("\0", ""))  # a terminal skips NUL, even within a sequence


def name(value: str) -> str:
    """A name as one line; empty where nothing of it can be seen."""
    line = " ".join(cleaned(value).split())
    return line if has_ink(line) else ""


def has_ink(value: str) -> bool:
    """Whether anything of a cleaned text is to be seen: more than spaces, and marks that stand on none."""
    return any(unicodedata.category(char)[0] not in "MZC" for char in value)


def _is_seen(before: list[str], char: str, after: str) -> bool:
    """Whether a character is kept, after those `before` it that were kept and with the one `after` it."""
    last = before[-1] if before else ""
    if char in (_ZWNJ, _ZWJ):
        return bool(last and after) and (_joins_letters(last, after) or (char == _ZWJ and _joins_emoji(before, after)))
    if char in _UNSEEN:
        return bool(last) and _varies(last, char, after)
    return char == "\n" or unicodedata.category(char) not in _DROPPED


def _joins_letters(last: str, after: str) -> bool:
    """Whether a joiner shapes these letters: in Arabic scripts, such as Persian's, and after a virama of India's."""
    arabic = unicodedata.bidirectional(last) in ("AL", "NSM") and unicodedata.bidirectional(after) == "AL"
    return arabic or (unicodedata.combining(last) == _VIRAMA and unicodedata.category(after)[0] in "LM")


def _joins_emoji(before: list[str], after: str) -> bool:
    """Whether a joiner makes one emoji of two."""
    last = before[-2] if len(before) > 1 and before[-1] == _EMOJI_STYLE else before[-1]
    return _is_pictured(last) and _is_pictured(after)


def _is_pictured(char: str) -> bool:
    return unicodedata.category(char) == "So" or "\U0001f3fb" <= char <= "\U0001f3ff"


def _varies(last: str, char: str, after: str) -> bool:
    """Whether a selector chooses among the forms of the character before it."""
    if char in (_TEXT_STYLE, _EMOJI_STYLE) and (
        last in _EMOJI_OF_OTHER_CATEGORIES
        or (not last.isascii() and unicodedata.category(last)[0] == "S")
        or (last in "#*0123456789" and after == _KEYCAP)
    ):
        return True
    if "\u180b" <= char <= "\u180f":
        return "\u1820" <= last <= "\u18aa"  # Mongolian
    ideographic = "\ufe00" <= char <= "\ufe02" or "\U000e0100" <= char <= "\U000e01ef"
    return ideographic and unicodedata.name(last, "").startswith("CJK ")
