"""Talking to the Hub when it is busy or says no: what is tried again and when, and what the user is told."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import TYPE_CHECKING, TypeVar

from gqa.convert.errors import UserError, first_line

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

Result = TypeVar("Result")
Say = Callable[[str], None]

GO_ON = "what has arrived there is kept: run the same command again to go on"
_PASSING = {408: "slow", 429: "busy", 500: "in trouble", 502: "in trouble", 503: "in trouble", 504: "in trouble"}
_TRIES = 5
_LONGEST_WAIT = 300  # seconds; who is asked to wait longer is told, and comes back


def patiently(call: Callable[[], Result], say: Say) -> Result:
    """What `call` returns, tried again while the Hub is busy or out of reach, after as long a wait as it asks for.

    Args:
        call: does the same if it is done twice.
        say: told of every wait.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for attempt in range(_TRIES):
        try:
            return call()
        except (HTTPError, JSONDecodeError, OSError) as error:
            cause = _http_error(error)
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
            asked = _asked_wait(cause) if isinstance(cause, HfHubHTTPError) else None
            wait = 2.0**attempt if asked is None else asked
            passing = status in _PASSING if status else isinstance(cause, HTTPError | JSONDecodeError)
            if not passing or attempt == _TRIES - 1 or wait > _LONGEST_WAIT:
                raise
            trouble = f"is {_PASSING[status]} ({status})" if status in _PASSING else "can't be reached"
            say(f"The Hub {trouble}; trying again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def hub_sentences(repo_id: str) -> Iterator[None]:
    """Turn what goes wrong at the Hub, or on the way there, into sentences.

    Raises:
        UserError: in place of the error.
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set, so nothing can be published; unset it") from None
    except UserError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        if (sentence := _told(error, repo_id)) is None:
            raise
        raise UserError(sentence) from None


def _told(error: Exception, repo_id: str) -> str | None:
    """The sentence for an error; None for one that is not about the Hub."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    cause = _http_error(error)
    if "metadata in README.md" in str(error):
        return f"the Hub refuses the card: {_last_line(error)}"
    if isinstance(cause, HfHubHTTPError):
        return _sentence(cause, repo_id)
    if isinstance(cause, HTTPError) or isinstance(error, RuntimeError):  # the latter comes from hf_xet
        return f"the connection to the Hub broke ({first_line(cause)}); {GO_ON}"
    if isinstance(error, JSONDecodeError):
        return "what answers in the Hub's place does not speak JSON; look at HF_ENDPOINT"
    return None


def _http_error(error: BaseException) -> Exception:
    """The error of HTTP behind one that the library wraps it in, or the error itself."""
    from huggingface_hub.errors import HTTPError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, HTTPError):
            return seen
        seen = seen.__cause__ or seen.__context__
    assert isinstance(error, Exception)
    return error


def _sentence(error: "HfHubHTTPError", repo_id: str) -> str:
    status, namespace = error.response.status_code, repo_id.partition("/")[0]
    said = f" ({error.server_message.strip()})" if error.server_message else ""
    if status == 401:
        return "the Hub does not accept the token; log in with `hf auth login`, or give another in HF_TOKEN"
    if status == 403:
        return (
            f"the token may not write to {repo_id}{said}; "
            f"use one with write access to {namespace}, from https://huggingface.co/settings/tokens"
        )
    if status == 404:
        return f"the Hub has no {repo_id} that this token may see{said}; look at the name, and at the token's rights"
    if status in (409, 412):
        return f"{repo_id} was changed by somebody else meanwhile{said}; run the same command again"
    if status == 429:
        wait = _asked_wait(error)
        again = "later" if wait is None else f"in {wait / 60:.0f} minutes" if wait > 90 else f"in {wait:.0f} s"
        return (
            f"the Hub takes no more requests for now{said}; run the same command again {again}, to go on where it was"
        )
    if status in _PASSING:
        return f"the Hub is {_PASSING[status]} ({status}); {GO_ON}"
    return f"the Hub refuses with status {status}{said or f' ({first_line(error)})'}"


def _asked_wait(error: "HfHubHTTPError") -> float | None:
    """Seconds that the answer asks to wait, by Retry-After in either of its forms."""
    asked = error.response.headers.get("Retry-After", "").strip()
    if not asked:
        return None
    if asked.isdigit():
        return float(asked)
    try:
        return max((parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].lstrip("- ")
