"""The files of the chat page."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from starlette.responses import Response

from cygnet.serve.errors import ApiError

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_file(folder: Path, name: str) -> Response:
    """Return one file of the page's folder.

    Raises:
        ApiError: there is none of that name.
    """
    names = {file.name for file in folder.glob("*") if file.is_file()}
    if name not in names:
        raise ApiError(404, f"the page has no file {name}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response((folder / name).read_bytes(), media_type=kind, headers=HEADERS)
