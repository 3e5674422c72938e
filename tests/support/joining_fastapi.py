"""FastAPI applications as its tutorials write them. They know nothing of global transactions."""

# No `from __future__ import annotations`: FastAPI reads the annotations, and names here are local.

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    body: Mapped[str] = mapped_column(primary_key=True)


def fastapi_async(engine: Any) -> FastAPI:
    """Sessions by a dependency that commits behind its yield; middleware in front."""
    app = FastAPI()
    sessions = async_sessionmaker(engine, expire_on_commit=False)

    @app.middleware("http")
    async def timed(request: Request, call_next: Any) -> Any:
        reply = await call_next(request)
        reply.headers["x-timed"] = "yes"
        return reply

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session
            await session.commit()

    async def known(session: Annotated[AsyncSession, Depends(get_session)]) -> int:
        return len(list(await session.scalars(select(Note).limit(3))))

    Db = Annotated[AsyncSession, Depends(get_session)]

    @app.post("/notes/{body}", dependencies=[Depends(known)])
    async def add(body: str, session: Db) -> dict[str, str]:
        session.add(Note(body=f"{body}-1"))
        await session.flush()
        session.add(Note(body=f"{body}-2"))
        return {"added": body}

    @app.get("/notes/{body}")
    async def read(body: str) -> list[str]:
        async with sessions() as session:
            return list(await session.scalars(select(Note.body).where(Note.body.startswith(body))))

    @app.post("/caught/{body}")
    async def caught(body: str, session: Db) -> dict[str, str]:
        with contextlib.suppress(ZeroDivisionError):
            async with sessions.begin() as own:
                own.add(Note(body=f"{body}-undone"))
                await own.flush()
                raise ZeroDivisionError
        with contextlib.suppress(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Note(body=f"{body}-undone-2"))
                await session.flush()
                raise ZeroDivisionError
        session.add(Note(body=f"{body}-1"))
        return {"added": body}

    @app.post("/sold-out/{body}")
    async def sold_out(body: str, session: Db) -> None:
        session.add(Note(body=body))
        await session.commit()
        raise HTTPException(409, "sold out")

    @app.post("/later/{body}")
    async def later(body: str, tasks: BackgroundTasks) -> dict[str, str]:
        async def work() -> None:
            async with sessions.begin() as session:
                session.add(Note(body=f"{body}-1"))

        tasks.add_task(work)
        return {"will": "do"}

    @app.post("/stream/{body}")
    async def stream(body: str, session: Db) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for number in (1, 2):
                session.add(Note(body=f"{body}-{number}"))
                await session.flush()
                yield f"{number}\n"

        return StreamingResponse(lines(), media_type="text/csv")

    return app


def fastapi_threads(engine: Any) -> FastAPI:
    """The same with ``def`` endpoints and a synchronous session."""
    app = FastAPI()
    sessions = sessionmaker(engine, expire_on_commit=False)

    @app.middleware("http")
    async def timed(request: Request, call_next: Any) -> Any:
        return await call_next(request)

    def get_session() -> Iterator[Session]:
        with sessions() as session:
            yield session
            session.commit()

    Db = Annotated[Session, Depends(get_session)]

    @app.post("/notes/{body}")
    def add(body: str, session: Db) -> dict[str, str]:
        session.add(Note(body=f"{body}-1"))
        session.flush()
        session.add(Note(body=f"{body}-2"))
        return {"added": body}

    @app.get("/notes/{body}")
    def read(body: str) -> list[str]:
        with sessions() as session:
            return list(session.scalars(select(Note.body).where(Note.body.startswith(body))))

    @app.post("/caught/{body}")
    def caught(body: str, session: Db) -> dict[str, str]:
        with contextlib.suppress(ZeroDivisionError), sessions.begin() as own:
            own.add(Note(body=f"{body}-undone"))
            own.flush()
            raise ZeroDivisionError
        session.add(Note(body=f"{body}-1"))
        return {"added": body}

    @app.post("/sold-out/{body}")
    def sold_out(body: str, session: Db) -> None:
        session.add(Note(body=body))
        session.commit()
        raise HTTPException(409, "sold out")

    @app.post("/later/{body}")
    def later(body: str, tasks: BackgroundTasks) -> dict[str, str]:
        def work() -> None:
            with sessions.begin() as session:
                session.add(Note(body=f"{body}-1"))

        tasks.add_task(work)
        return {"will": "do"}

    @app.post("/stream/{body}")
    def stream(body: str, session: Db) -> StreamingResponse:
        def lines() -> Iterator[str]:
            for number in (1, 2):
                session.add(Note(body=f"{body}-{number}"))
                session.flush()
                yield f"{number}\n"

        return StreamingResponse(lines(), media_type="text/csv")

    return app
