"""Safe, unique file names from ids, labels and other external strings.

Ordinary ids stay as they are. Characters that could leave the folder, hide the file or break a line
are percent-encoded as in a URL (`urllib.parse.unquote` decodes them). A name that is too long for
the disk is cut, and ends with a hash of the whole.
"""

from __future__ import annotations

import hashlib
import re

LONGEST = 240  # bytes of a name; disks allow 255, and temporary names are a little longer
FORBIDDEN = set('/\\:*?"<>|%')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # reserved by Windows


def of(name: str, suffix: str = "", prefix: str = "", more: str = "") -> str:
    """`prefix`, the encoded id and `suffix`; different ids give different names.

    Letters of all scripts, digits and most signs stay. White space, invisible characters, `%`, `/`,
    the backslash and `:*?"<>|` are encoded, and the characters of `more`. A leading full stop is
    encoded too.
    """
    pieces = [_encoded(character) if character in more else _piece(character) for character in name]
    if pieces and (name.startswith(".") or RESERVED.fullmatch(name)):
        pieces[0] = _encoded(name[0])
    # a lone % is the empty id: any other % is followed by digits
    whole = prefix + ("".join(pieces) or "%") + suffix
    if len(whole.encode()) <= LONGEST:
        return whole
    end = "%~" + hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:32] + suffix
    room = LONGEST - len((prefix + end).encode())
    kept = ""
    for piece in pieces:
        room -= len(piece.encode())
        if room < 0:
            break
        kept += piece
    return prefix + kept + end


def _piece(character: str) -> str:
    plain = character.isprintable() and character != " " and character not in FORBIDDEN
    return character if plain else _encoded(character)


def _encoded(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
