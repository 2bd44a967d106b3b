"""The object stores that a URI may name, by its scheme."""

from collections.abc import Iterator

from manifpt.storage import azure, gcs, hf, s3
from manifpt.storage.failures import explain_errors
from manifpt.storage.protocol import ListingPage, Store

STORES: dict[str, Store] = {"s3": s3, "gs": gcs, "az": azure, "hf": hf}


def scheme(uri: str) -> str:
    """Return the scheme of a URI, "" for a path."""
    before, mark, _ = uri.partition("://")
    return before if mark else ""


def is_remote(uri: str) -> bool:
    """Tell whether ``uri`` names an object store."""
    return scheme(uri) in STORES


def store(uri: str) -> Store:
    """Return the object store of a URI."""
    return STORES[scheme(uri)]


def path_of(uri: str) -> str:
    """Return the bucket and the key of a URI, as BUCKET/KEY."""
    return uri.partition("://")[2]


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of a URI."""
    if scheme(uri) == "hf":
        return hf.split(path_of(uri))
    bucket, _, key = path_of(uri).partition("/")
    return bucket, key


def pages(uri: str, prefix: str, delimiter: str = "") -> Iterator[ListingPage]:
    """Yield the listing of the keys that begin with ``prefix``, in the bucket of ``uri``."""
    with explain_errors(uri):
        yield from store(uri).pages(bucket_and_key(uri)[0], prefix, delimiter)
