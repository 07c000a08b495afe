"""Whether a lock of `paths.locked` is held."""

from filelock import FileLock, Timeout


def in_use(place):
    """Whether anybody, this process included, holds the lock on `place`."""
    try:
        with FileLock(place.with_name(f".{place.name}.lock"), timeout=0):
            return False
    except Timeout:
        return True
