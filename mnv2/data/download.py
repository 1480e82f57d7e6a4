"""Whether there is a network, asked once and shortly, before a download retries for minutes."""

import urllib.error
import urllib.request

TIMEOUT = 10.0  # seconds


def reachable(url: str) -> bool:
    """True if the server of `url` answers, whatever it says; by way of a proxy if one is set."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True
