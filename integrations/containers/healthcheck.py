"""Asks a server in the same container whether it draws; ends with 0 where it does, and else with 1.

It goes straight to the address, whatever proxy the environment names. A server that has drawn nothing for ten seconds
draws one image to answer.
"""

import http.client
import os
import sys

SECONDS = 50
"""How long one answer may take: less than the time-out of HEALTHCHECK, so that this script ends by itself."""


def main() -> int:
    """Ask once, at the port of the variable VAR_EXPORT_PORT, which is 8000 by default."""
    port = int(os.environ.get("VAR_EXPORT_PORT", "8000"))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"no answer: {error}\n")
        return 1
    return 0 if status == http.client.OK else 1


if __name__ == "__main__":
    sys.exit(main())
