"""Pages are made of results that are complete: whatever goes wrong with a page is told and kept, and fails nothing."""

import contextlib
import logging
import pathlib
import traceback
from collections.abc import Iterator

from xbm_keras.atomic_files import write_whole

log = logging.getLogger("xbm_keras")
REPORT_ERROR = "report_error.txt"


@contextlib.contextmanager
def kept_in(folder: pathlib.Path, how_again: str) -> Iterator[None]:
    """An error of the block ends the block alone: its last line is said, its traceback kept in `report_error.txt`.

    A block that ends well removes that file.

    Args:
        folder: of the results that the page shows.
        how_again: what makes the page once more, for people.
    """
    file = folder / REPORT_ERROR
    try:
        yield
    except Exception as error:  # of any kind: what is shown was hours of work, and is complete without the page
        with contextlib.suppress(OSError):  # the disk may be what is wrong
            write_whole(file, traceback.format_exc())
        last_line = traceback.format_exception_only(error)[-1].strip()
        log.warning(
            "The report could not be written: %s. The results are complete without it; the traceback is in %s. %s",
            last_line, file, how_again,
        )  # fmt: skip
    else:
        file.unlink(missing_ok=True)
