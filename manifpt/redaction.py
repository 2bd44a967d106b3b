"""Remove credentials from URIs, alone or in a text: user, password, query, fragment.

A URI is parsed by RFC 3986, and in the other forms that browsers accept, also if it is
percent-encoded or inside the path of another URI. Parts that may be credentials are removed, too: a
path loses its ``;parameters``, and a URI without a valid host and port loses everything after
``://``. A secret that is a segment of a path looks like any other segment, and stays.

Local paths, s3://, gs:// and az:// URIs may be patterns, and their names may hold any character.
They lose a query or fragment only if it begins with a named value, such as ``?token=...``.
"""

import re
from typing import Any
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "***"
_PATTERNS = {"", "s3", "gs", "az", "hf", "file"}
_LEVELS = 5  # of percent-encoding, and of URIs in the paths of URIs
_SAFE = "/:@!$&'()*+,=~[]{}|"
_SLASH = r"(?:\\?/|\\|%(?:25)*2[Ff])"
_COLON = r"(?::|%(?:25)*3[Aa])"
_BEGIN = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{1,30}}){_COLON}{_SLASH}{{2}}"
    rf"|(?P<web>[Hh][Tt][Tt][Pp][Ss]?){_COLON}{_SLASH}"
    r"|(?<![\w:/\\.%])//(?=[^\s/])"
    r"|(?<=\burl: )/(?=\S)"  # urllib3's words for a failed URL
)
_INSIDE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{1,30}:/{1,2}")
_HOST = r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:@%\\\[\]'\"<>]*)(?::\d{0,5})?"
_AUTHORITY = re.compile(rf"{_HOST}(?:,{_HOST})*")
_NAMED_VALUE = re.compile(r"(?:[?#]|%(?:25)*(?:3[Ff]|23))[^/?#=]{0,128}?(?:=|%(?:25)*3[Dd])")
_USER = re.compile(r"(?<=/)[^/:@]*:[^/@]*@")
_CLOSING = ".,;:!?)}>'\"`"


def public(text: str) -> str:
    """Return a text with the credentials of its URIs removed; the rest stays as it is.

    A URI ends at a space, or at the closing quotation mark of the quotation that it is in.
    """
    parts, at, quotes = list[str](), 0, dict.fromkeys("'\"`", False)
    while begin := _BEGIN.search(text, at):
        for mark in re.findall(r"(?<!\\)['\"`]", text[at : begin.start()]):
            quotes[mark] = not quotes[mark]
        end = _end(text, begin.end(), {mark for mark, is_open in quotes.items() if is_open})
        parts += [text[at : begin.start()], _in_text(text[begin.start() : end])]
        at = end
    return "".join([*parts, text[at:]])


def public_values(value: Any) -> Any:
    """Return a JSON value, which may hold tuples, with ``public`` applied to each text."""
    if isinstance(value, str):
        return public(value)
    if isinstance(value, dict):
        return {public_values(key): public_values(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(public_values, value))
    return value


def public_uri(uri: str) -> str:
    """Return one URI or path without its credentials; without any, it stays as it is."""
    plain = re.sub(r"[\t\r\n]", "", uri)  # which parsers of URLs skip
    found = _redacted(plain, 0)
    return uri if found == plain else found


def _end(text: str, at: int, quotes: set[str]) -> int:
    """Return the end of a URI with a scheme that ends at ``at``; ``quotes`` are open there."""
    for end in range(at, len(text)):
        letter, after = text[end], text[end + 1 : end + 2]
        if letter.isspace() and letter not in "\t\r\n":
            break
        closes = letter in quotes and text[end - 1] != "\\"
        if closes and (not after or after.isspace() or after in ",;:.)]}>/"):
            break
    else:
        end = len(text)
    return _without_closing(text, at, end)


def _without_closing(text: str, at: int, end: int) -> int:
    """Return the end of a URI before the punctuation of the sentence around it."""
    brackets = text.count("]", at, end) - text.count("[", at, end)
    while end > at and (text[end - 1] in _CLOSING or (text[end - 1] == "]" and brackets > 0)):
        end -= 1
        brackets -= text[end] == "]"
    return end


def _in_text(uri: str) -> str:
    """Return a URI in a text without credentials; it may end at a line end or go on after it."""
    line, more, rest = re.match(r"([^\t\r\n]*)([\t\r\n]*)(.*)", uri, re.DOTALL).groups()  # type: ignore[union-attr]
    if more and public_uri(line) == line and not re.search(r"[@?#;%=]", rest):
        return uri
    return public_uri(uri)


def _redacted(uri: str, level: int) -> str:
    begin = _BEGIN.match(uri)
    if begin is not None and "%" in begin[0]:
        uri = _decoded(uri) or HIDDEN
        begin = _BEGIN.match(uri)
    if begin is None:
        return _NAMED_VALUE.split(uri, maxsplit=1)[0]
    scheme = begin["scheme"] or begin["web"] or ""
    if scheme.lower() in _PATTERNS:
        return _pattern(begin[0], uri[begin.end() :])
    body = uri[begin.end() :].replace("\\/", "/").replace("\\", "/")
    body = body.lstrip("/") if scheme.lower() in {"http", "https"} else body
    try:
        parts = urlsplit(f"{scheme}://{body}")
    except ValueError:
        return f"{scheme}://{HIDDEN}"
    host = unquote(parts.netloc).rpartition("@")[2]
    if not _AUTHORITY.fullmatch(host):
        return f"{scheme}://{HIDDEN}"
    found = f"{host}{_path(parts.path, level)}"
    return uri if found == body else f"{scheme}://{found}"


def _path(path: str, level: int) -> str:
    """Return the path of a URI without parts that may be secret, also in a URI inside it."""
    inside = _INSIDE.search(path)
    if inside is None:
        return _plain_path(path)
    nested = path[inside.start() :]
    shown = _redacted(nested, level + 1) if level < _LEVELS else HIDDEN
    return _plain_path(path[: inside.start()]) + shown


def _plain_path(path: str) -> str:
    """Return a path without parts that may be secret, percent-encoded or not."""
    plain = _decoded(path)
    if plain is None:
        return path[: path.index("%")]
    kept = re.sub(r";[^/]*", "", re.split("[?#]", plain, maxsplit=1)[0])
    inside = _INSIDE.search(kept)
    if inside is not None:
        nested = kept[inside.start() :]
        # Decoded, a password's slash looks like that of the path.
        shown = HIDDEN if "@" in nested else _redacted(nested, _LEVELS)
        kept = kept[: inside.start()] + shown
    kept = _USER.sub("", kept)
    return path if kept == plain else quote(kept, _SAFE, errors="replace")


def _decoded(text: str) -> str | None:
    """Return a text without percent-encoding; None if it is encoded more than a few times."""
    for _ in range(_LEVELS):
        plain = unquote(text)
        if plain == text:
            return text
        text = plain
    return None


def _pattern(begin: str, body: str) -> str:
    """Return a path or the URI of an object without credentials; ``?`` may be part of a pattern."""
    authority, slash, path = re.match(r"([^/\\?#]*)([/\\]?)(.*)", body, re.DOTALL).groups()  # type: ignore[union-attr]
    host = authority
    if "@" in unquote(authority):
        host = unquote(authority).rpartition("@")[2]
    elif ":" in authority and begin.lower().startswith("s3") and not authority.startswith("arn:"):
        return f"{begin}{HIDDEN}"  # a secret key may hold a slash
    return begin + _NAMED_VALUE.split(f"{host}{slash}{path}", maxsplit=1)[0]
