"""Checks once, and quickly, whether a server can be reached: a download would retry for minutes."""

import urllib.error
import urllib.request

TIMEOUT = 10.0  # seconds


def reachable(url: str) -> bool:
    """Returns whether the server of `url` answers, with any status; uses a proxy if one is set."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
