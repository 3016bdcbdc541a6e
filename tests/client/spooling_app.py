"""An app that is killed: python spooling_app.py ADDRESS DIRECTORY; records, then says so."""

from __future__ import annotations

import asyncio
import sys

from gaia_grpc.client import Client


async def main(address: str, directory: str) -> None:
    async with Client.connect(address) as client:
        spool = await client.metrics.open_spool(directory, source_id="tablet-7")
        app = client.metrics.buffer(student_id="ana", app_name="math", spool=spool)
        for number in range(250):
            app.record("keypress", number)
        app.seal()
        await spool._on_thread(lambda: None)  # what was given to it before is written
        sys.stdout.write("recorded\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


asyncio.run(main(*sys.argv[1:]))
