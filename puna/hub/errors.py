"""What the hub's refusals mean, in one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from puna.hub.names import HubName


class NotFoundError(ValueError):
    """The hub has no such repository, or there is no hub to ask."""


def transport_error() -> type[Exception]:
    """The base of what the HTTP client of the `huggingface_hub` library raises."""
    from huggingface_hub.errors import HfHubHTTPError

    base = HfHubHTTPError.__bases__[0]  # the client has changed from version to version
    assert issubclass(base, Exception)
    return base


@contextlib.contextmanager
def explained(name: HubName, endpoint: str, hint: str = "") -> Iterator[None]:
    """Turns what the `huggingface_hub` library raises into ValueErrors that say what to do.

    `hint` is added where the connection failed.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise ValueError(_gated(name, endpoint)) from None
    except RepositoryNotFoundError:
        raise NotFoundError(
            f"{name.repository} is not on {endpoint}, or it is private: check the name, and give a "
            "token that may read it (HF_TOKEN, or hf auth login)"
        ) from None
    except HfHubHTTPError as error:
        raise ValueError(_refused(name, endpoint, error.response.status_code)) from None
    except HFValidationError as error:
        raise ValueError(f"{name}: {error}") from None
    except OfflineModeIsEnabled:
        raise NotFoundError(f"{name} is not on this machine, and HF_HUB_OFFLINE is set") from None
    except (ConnectionError, TimeoutError, transport_error()) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NotFoundError(
            f"{endpoint} cannot be reached ({reason}); check the network, or HF_ENDPOINT{hint}"
        ) from None


def _gated(name: HubName, endpoint: str) -> str:
    from huggingface_hub import get_token

    page = f"{endpoint}/{name.repository}"
    if get_token() is None:
        return (
            f"{name.repository} is gated: ask for access at {page}, then give your token "
            "(HF_TOKEN, or hf auth login)"
        )
    return f"{name.repository} is gated, and your token has no access: ask for it at {page}"


_MEANINGS = {
    401: "the token is not valid; renew it (HF_TOKEN, or hf auth login)",
    403: "the token may not read this",
    404: "there is no such file or page",
    429: "too many requests; wait some minutes",
}


def _refused(name: HubName, endpoint: str, status: int) -> str:
    meaning = _MEANINGS.get(status, "try again later" if status >= 500 else "it refuses")
    return f"{name}: {endpoint} answers {status}: {meaning}"
