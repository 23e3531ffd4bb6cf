"""Names of files that are made of an id, a label or whatever else came from outside: never a path,
never another's.

Usual ids stay as they are. What could leave the folder, hide the file or break a line becomes `%2F`
as in an address (`urllib.parse.unquote` undoes it), and what is too long for a disk is cut and ends
with a hash of the whole.
"""

from __future__ import annotations

import hashlib
import re

LONGEST = 240  # bytes of a name; disks take 255, and temporary names are a little longer
FORBIDDEN = set('/\\:*?"<>|%')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # devices of Windows


def of(name: str, suffix: str = "", prefix: str = "") -> str:
    """`prefix` and `suffix` with an id between them; other ids give other names.

    Letters of all scripts, digits and most signs stay; white space, characters that show nothing,
    `%` and `/\\:*?"<>|` are encoded, and so is a full stop at the beginning.
    """
    pieces = [_piece(character) for character in name]
    if pieces and (name.startswith(".") or RESERVED.fullmatch(name)):
        pieces[0] = _encoded(name[0])
    # a lone % is the empty id: any other is followed by digits
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
