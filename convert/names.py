"""What arguments name on disk, looked up before anything else asks for it."""

from pathlib import Path

from gqa.convert.errors import UserError

_SHOWN = 60  # characters of a name that is too long to be one


def check_names(*names: str | Path | None) -> None:
    """Refuse what no disk can look up; what is merely not there is for others to say.

    Raises:
        UserError: a name is too long, or its folder may not be entered.
    """
    for name in names:
        if name is None:
            continue
        try:
            Path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            shown = f"{str(name)[:_SHOWN]}..." if len(str(name)) > _SHOWN else name
            raise UserError(f"{shown} can't be looked up ({error.strerror}); name another path") from None
