"""Pages of the database that nothing is stored on any more: used again, or given back.

They keep what was on them, and so does the room that a page in use has left when its rows move to
another. That is no harm until someone's data was deleted: then the database is built anew, of the
rows that are there, and the journal is emptied, since it holds older forms of the pages.
"""

from __future__ import annotations

from gaia_grpc.storage.database import Database

KEEP_FREE_PAGES = 16 * 1024
VACUUM_PAGES = 64
"""Free pages beyond 64 MB go back to the file system, 256 kB a step; the rest is used again."""


class FreePages:
    """When there is something to do, and one step of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._to_trim = True
        self._to_clean = False

    @property
    def due(self) -> bool:
        """Whether `step` would look for something."""
        return self._to_trim or self._to_clean

    def removed(self) -> None:
        """Rows were removed: there may be more of them than are kept."""
        self._to_trim = True

    def clean(self) -> None:
        """Nothing may be left on any page, nor in the journal."""
        self._to_clean = True

    def step(self) -> int | None:
        """A few milliseconds; where it cleans, some 15 ms for each MB in use (64 MB as a rule).

        Returns the pages that it wrote to the journal, or None where it emptied that. Raises like a
        transaction.
        """
        if self._to_clean:
            self._database.rebuild()
            self._to_clean = False
            return None
        excess = self._database.free_pages() - KEEP_FREE_PAGES
        self._to_trim = excess > 0
        if excess <= 0:
            return 0
        self._database.shrink(min(VACUUM_PAGES, excess))
        return 2 * VACUUM_PAGES
