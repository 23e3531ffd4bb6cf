"""Invisible characters, and file names that are not text.

Hidden characters are Unicode's format characters, variation selectors, fillers and control
characters. The joiners U+200C and U+200D count as hidden unless they follow a letter of the Arabic,
Indic or related scripts, where they are part of the spelling.
"""

from __future__ import annotations

import re

CONTROL = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # the others are white space
FORMAT = (
    "\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0000-\U000e0fff"  # and tags
FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
JOINED = (  # scripts whose letters change their form beside a joiner
    "\u0600-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u18af\u1a20-\u1aaf\u1b00-\u1c4f"
    "\ua800-\ua8ff\ua980-\uaadf\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00010ac0-\U00011fff"
)
HIDDEN = re.compile(f"[{CONTROL}{FORMAT}{SELECTORS}{FILLERS}]|(?<![{JOINED}])[\u200c\u200d]")


def visible(text: str) -> str:
    """The text without hidden characters."""
    return text if text.isascii() and text.isprintable() else HIDDEN.sub("", text)


def hidden(text: str) -> list[str]:
    """The hidden characters of a text, as U+200B, sorted."""
    return [f"U+{ord(character):04X}" for character in sorted(set(HIDDEN.findall(text)))]


def is_utf8(name: str) -> bool:
    """Whether the name of a file is UTF-8; Python represents other bytes as surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
