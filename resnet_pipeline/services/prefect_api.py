"""Prefect's API as this program asks it: with the user's login, impatient, and with errors of one line."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resnet_pipeline.errors import UserError
from resnet_pipeline.settings import cleaned, without_secrets

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SECONDS_TO_ANSWER = 5
SECONDS_TO_START = 120
_SECONDS = 30


@contextlib.contextmanager
def prefect_client(url: str) -> Iterator[SyncPrefectClient]:
    """Yield a client of the API at ``url``, with the login of PREFECT_API_KEY or PREFECT_API_AUTH_STRING.

    Raises UserError if no server answers, or for what it refuses.

    Example: ``with prefect_client("http://127.0.0.1:4200/api") as client: client.api_version()``
    """
    reach(f"{url.rstrip('/')}/health")
    import httpx
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.exceptions import PrefectException
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY

    try:
        with SyncPrefectClient(
            url,
            api_key=PREFECT_API_KEY.value(),
            auth_string=PREFECT_API_AUTH_STRING.value(),
            httpx_settings={"timeout": _SECONDS},
        ) as client:
            yield client
    except (httpx.HTTPError, PrefectException, RuntimeError) as error:
        text = cleaned((str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(f"Prefect at {without_secrets(url)}: {text}") from error


def reach(url: str) -> None:
    """Raise UserError if no HTTP server answers within seconds: the clients themselves would try for minutes.

    Example: ``reach("http://127.0.0.1:4200/api/health")``
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{without_secrets(url)} is no http address")
    try:
        with urllib.request.urlopen(without_secrets(url), timeout=SECONDS_TO_ANSWER):
            pass
    except urllib.error.HTTPError:
        pass  # one that wants a login, or has no such page, is there
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise UserError(f"{without_secrets(url)} does not answer: {getattr(error, 'reason', error)}") from None


def answers(url: str) -> bool:
    """Return whether a server answers, and well.

    Example: ``answers("http://127.0.0.1:4200/api/health")``
    """
    with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=SECONDS_TO_ANSWER):
        return True
    return False
