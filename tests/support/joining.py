"""An application on SQLAlchemy that knows nothing of global transactions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.acceptance import Client, Site, new_gid


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    body: Mapped[str] = mapped_column(primary_key=True)


class App:
    """An application that knows nothing of global transactions."""

    def __init__(self, client: Client, site: Site, outside: Any) -> None:
        self.client, self.site, self.coord, self.outside = client, site, client.coord, outside
        for name, engine in client.engines.items():
            client.coord.instrument(engine, resource=name, outside=outside)
        self.sessions = async_sessionmaker(client.accounts)
        self.body = new_gid()

    async def add(self, body: str = "", engine: AsyncEngine | None = None) -> None:
        """As a service function would: a session of its own, committed."""
        async with AsyncSession(engine or self.client.accounts) as session:
            session.add(Note(body=body or self.body))
            await session.commit()

    async def read(self) -> list[str]:
        """A session that is only closed."""
        async with self.sessions() as session:
            return list(await session.scalars(select(Note.body).where(Note.body.startswith(self.body))))

    def notes(self) -> list[str]:
        rows = self.site.accounts.sql(f"SELECT body FROM note WHERE body LIKE '{self.body}%' ORDER BY body")
        return rows.split()

    @property
    def counts(self) -> tuple[int, ...]:
        return self.site.counts(self.body)
