"""Making untrusted text safe to show: names, labels, paths and messages may contain anything."""

import json
import re

# Characters that act on a terminal, or on the order or presence of other characters, instead of being shown: control
# characters (Unicode's Cc), line and paragraph separators, bidirectional controls, invisible characters, halves of
# surrogate pairs (which cannot be encoded), tags. The joiners U+200C and U+200D are kept for Persian, Hindi and emoji.
_ACTING = re.compile(
    r"[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Replace characters that act instead of being shown by escapes such as \x1b, \n or \u202e."""
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def visible_json(value: object) -> str:
    """A JSON document for programs that is also safe to show; it decodes to the same values."""
    text = json.dumps(value, default=vars, ensure_ascii=False)
    return _ACTING.sub(lambda match: json.dumps(match[0])[1:-1], text)
